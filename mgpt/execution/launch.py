"""Stands in for Ray's `setup_worker.py` where a local Ray has a fork server (`mgpt.execution.forks`): asks it for a process and waits for
that process's end.

The raylet runs this as a script for every worker process; being in the way of each, it imports little. Where no server answers, or a
worker is to be set up in a way that a process which runs already cannot follow, it becomes Ray's own script. Contract: this folder is then
first in `sys.path`, so no module in it may have the name of one that is imported here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from typing import Any

ADDRESS, INSTEAD = (
    "MGPT_FORKS_ADDRESS",
    "MGPT_FORKS_INSTEAD",
)  # the server's socket; the script of Ray's that this stands in for
# Variables that are read when they are needed. Others may be read when Python, the loader or a library starts, which in the server is past.
_READ_LATE = ("AWS_", "MLFLOW_", "OPENAI_", "MGPT_", "RAY_")
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_TIMEOUT_SECONDS = 45.0  # for the server, which may still import, to answer; the raylet gives up a worker after 60


def main(arguments: list[str]) -> None:
    """Ends when the worker does."""
    asked = request(arguments)
    connection = None if asked is None else _connect()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until there is a worker to pass it on to
    worker = 0 if connection is None else _ask(connection, json.dumps(asked).encode())
    if worker:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if not worker or connection is None:
        os.execv(sys.executable, [sys.executable, os.environ[INSTEAD], *arguments])
    connection.settimeout(None)
    connection.recv(1)  # nothing comes; the worker's end ends it


def request(arguments: list[str]) -> dict[str, Any] | None:
    """What the server is to be asked, or None for a worker that it cannot make."""
    given = {
        flag: [one.removeprefix(flag) for one in arguments if one.startswith(flag)] for flag in (_CONTEXT, _LANGUAGE)
    }
    rest = [one for one in arguments if not one.startswith((_CONTEXT, _LANGUAGE))]
    context = json.loads(given[_CONTEXT][0]) if given[_CONTEXT] else {}
    variables: dict[str, str] = context.get("env_vars") or {}
    plain = not context.get("command_prefix") and not context.get("override_worker_entrypoint")
    same_python = context.get("py_executable") in (None, sys.executable)
    late = all(
        name.startswith(_READ_LATE) and "$" not in value for name, value in variables.items()
    )  # Ray would fill in "$"
    if not (plain and same_python and late and given[_LANGUAGE] == ["PYTHON"] and rest and rest[0].endswith(".py")):
        return None
    with open("/proc/self/oom_score_adj", encoding="ascii") as score:
        inherited = {
            "folder": os.getcwd(),  # noqa: PTH109 - pathlib is one import more
            "environment": {**os.environ, **variables},
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "oom_score_adj": score.read().strip(),
        }
    return {"arguments": rest, **inherited}


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_TIMEOUT_SECONDS)
    try:
        connection.connect(os.environ[ADDRESS])
    except OSError:
        connection.close()
        return None
    return connection


def _ask(connection: socket.socket, message: bytes) -> int:
    """The worker's process id; 0 where the server ended meanwhile, or does not answer."""
    try:
        socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(message)
        return int.from_bytes(connection.recv(8), "big")
    except OSError:
        connection.close()
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
