"""Stands in for Ray's `setup_worker.py` where a local Ray has a fork server (`mgpt.cluster.forks`): asks it for a process and waits for
that process's end.

The raylet runs this as a script for every worker process; being in the way of each, it imports little. Where no server answers, or a
worker is to be set up in a way that a process which runs already cannot follow, it becomes Ray's own script.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

ADDRESS, INSTEAD = "MGPT_FORKS_ADDRESS", "MGPT_FORKS_INSTEAD"  # the server's socket; the script of Ray's that this stands in for
# Variables that Python, the loader or a library reads when it starts, which in the server is past.
_READ_AT_START = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "ARROW_", "HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_")
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main(arguments: list[str]) -> None:
    """Ends as the worker does."""
    asked = request(arguments)
    connection = None if asked is None else _connect()
    if connection is not None and (worker := _ask(connection, json.dumps(asked).encode())):
        signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
        connection.recv(1)  # nothing comes; the worker's end ends it
        return
    os.execv(sys.executable, [sys.executable, os.environ[INSTEAD], *arguments])


def request(arguments: list[str]) -> dict[str, Any] | None:
    """What the server is to be asked, or None for a worker that it cannot make."""
    given = {flag: [one.removeprefix(flag) for one in arguments if one.startswith(flag)] for flag in (_CONTEXT, _LANGUAGE)}
    rest = [one for one in arguments if not one.startswith((_CONTEXT, _LANGUAGE))]
    context = json.loads(given[_CONTEXT][0]) if given[_CONTEXT] else {}
    variables: dict[str, str] = context.get("env_vars") or {}
    plain = not context.get("command_prefix") and not context.get("override_worker_entrypoint")
    same_python = context.get("py_executable") in (None, sys.executable)
    late = any(name.startswith(_READ_AT_START) or "$" in value for name, value in variables.items())  # Ray would fill in "$"
    if late or not (plain and same_python and given[_LANGUAGE] == ["PYTHON"] and rest and rest[0].endswith(".py")):
        return None
    return {"arguments": rest, "folder": os.getcwd(), "environment": {**os.environ, **variables}}  # noqa: PTH109 - pathlib is one import more


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.environ[ADDRESS])
    except OSError:
        connection.close()
        return None
    return connection


def _ask(connection: socket.socket, message: bytes) -> int:
    """The worker's process id; 0 where the server ended meanwhile."""
    try:
        socket.send_fds(connection, [len(message).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(message)
        return int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    except OSError:
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
