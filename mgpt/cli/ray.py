"""`mgpt ray`: the local Ray that the stages of a project share."""

from __future__ import annotations

import time

import typer

from mgpt.cli.console import print_table, status
from mgpt.cli.project import PARAMS, project_folder

app = typer.Typer(no_args_is_help=True, help="The local Ray that stages share: status, start, stop.")

_NONE = "no local Ray of this project is running"
_POLL_SECONDS = 0.2


@app.command("status")
def show_status() -> None:
    """List the project's local Rays."""
    from mgpt.execution import session

    states = [state for shared in session.every_local_ray(project_folder()) if (state := shared.read())]
    if states:
        print_table(["address", "owner pid"], [[state["address"], state["pid"]] for state in states])
    else:
        print(_NONE)


@app.command()
def start() -> None:
    """Start the local Ray, so that the next stage need not wait for it."""
    from mgpt.config import load_settings
    from mgpt.execution import session

    folder, settings = project_folder(), load_settings(PARAMS)
    shared = session.start(settings.cluster, folder)
    begun = time.monotonic()
    with status("starting the local Ray"):
        while (state := shared.read()) is None:
            if time.monotonic() - begun > session.START_SECONDS:
                raise ValueError(f"the local Ray did not start within {session.START_SECONDS} s; see {shared.log}")
            time.sleep(_POLL_SECONDS)
    idle = settings.cluster.idle_minutes
    print(f"local Ray at {state['address']}; it stops after {idle:g} minutes without a stage")


@app.command()
def stop() -> None:
    """Stop the project's local Rays."""
    from mgpt.execution import session

    print("\n".join(session.stop(project_folder())) or _NONE)
