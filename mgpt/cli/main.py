"""The `mgpt` command. Commands import what they need when they run, so that help takes well under a second."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mgpt import __version__
from mgpt.cli import chat, convert, data, plan, ray, registry
from mgpt.cli.console import print_wrapped, status
from mgpt.cli.project import PARAMS, project_folder

# Libraries that only some installations have, by the extra that brings them.
EXTRAS = {
    "torch": "model",
    "transformers": "model",
    "peft": "model",
    "ray": "train",
    "mlflow": "registry",
    "dvc": "submit",
}

app = typer.Typer(
    name="mgpt",
    help="Train, evaluate, promote and use MiniGPT-4 and MiniGPT-v2. `dvc repro` runs the pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 2, with a message on stderr, for an error that a user can cause."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="mgpt")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        print(f"mgpt: {library} is not installed; run pip install 'mgpt[{EXTRAS[library]}]'", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"mgpt: {error}", file=sys.stderr)
    return 2


def _print_version(requested: bool) -> None:
    if requested:
        print(f"mgpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Declares the options of `mgpt` itself."""


@app.command()
def check(params: Annotated[Path, typer.Option(help="The file to check.")] = PARAMS) -> None:
    """Check params.yaml, every name in it, the store, the tracking server and the cluster."""
    from mgpt.pipeline.check import read_checked_settings
    from mgpt.pipeline.probes import probe_services

    with status("checking"):
        settings = probe_services(read_checked_settings(params)).checked()
    print(f"{params}: no errors")
    print(f"  store     {settings.storage.root} can be written and read")
    print(f"  tracking  {settings.tracking.uri} responds or will be created")
    print(f"  cluster   {settings.cluster.address or 'none: stages share a local Ray'}")


@app.command()
def report() -> None:
    """Print the scores, times and champions of the pipeline; writes results/summary.json."""
    from mgpt.pipeline.summary import report as summary

    print_wrapped(summary(project_folder()))


@app.command()
def verify(manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...")]) -> None:
    """Compare every byte of stored files with their manifests."""
    from mgpt.storage import Manifest

    for path in manifests:
        manifest = Manifest.load(path)
        manifest.verify()
        print(f"{path}: {len(manifest.entries)} files are unchanged")


app.command("plan")(plan.plan)
app.add_typer(ray.app, name="ray")
app.command("models")(registry.models)
app.command("rollback")(registry.rollback)
app.command("audit")(registry.audit)
app.command("lineage")(registry.lineage)
app.add_typer(data.app, name="data")
app.add_typer(convert.app, name="convert")
app.command("chat")(chat.chat)
app.command("predict")(chat.predict)
