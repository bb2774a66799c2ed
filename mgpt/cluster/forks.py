"""A fork server for the workers of a local Ray: `python -m mgpt.cluster.forks SOCKET PACKAGES MODULE...`.

A training on Ray takes six processes and more. Each imports Ray twice (`setup_worker.py`, then `default_worker.py`), most of them torch,
and half of them transformers: seconds of a core each, and a copy of it all in memory. Here one process imports that once, and every worker
is a fork of it: the raylet runs `mgpt.cluster.launch` for each, which asks here and waits.

Imported before the fork is what comes from installed packages alone: this project's code is read from the disk by each worker.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy

from mgpt.cluster import launch
from mgpt.cluster.launch import ADDRESS, INSTEAD

# What workers of trainings and evaluations import, directly or not, and takes long. Nothing of Ray's: when it is imported, it reads what
# the worker is to be from the environment.
PRELOADED = (
    "pandas",
    "pyarrow.parquet",
    "pydantic_settings",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.blip_2.modeling_blip_2",
    "transformers.models.auto.processing_auto",
)
PACKAGES = Path(sysconfig.get_path("platlib"))
_TIMEOUT_SECONDS = 30.0  # for a launcher to say what it wants


def start(folder: Path) -> None:
    """Starts a server with its socket in `folder`, for the Ray that this process starts next. It ends with this process."""
    from ray._private import ray_constants, workers
    from ray._private.parameter import RayParams

    address = folder / "forks"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        command = [sys.executable, "-m", "mgpt.cluster.forks", str(listener.fileno()), str(PACKAGES), *PRELOADED]
        subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])  # the pipe ends with this process
    instead = Path(next(iter(workers.__path__))) / ray_constants.SETUP_WORKER_FILENAME
    os.environ.update({ADDRESS: str(address), INSTEAD: str(instead)})
    RayParams.__init__ = partialmethod(RayParams.__init__, setup_worker_path=launch.__file__)  # type: ignore[method-assign,assignment]


def serve(listener: socket.socket, packages: Path, modules: list[str]) -> None:
    """Forks a worker for each launcher, until standard input ends or a package is installed: what was imported may be another's now."""
    installed = packages.stat().st_mtime_ns
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # memory that forks share as long as nobody writes marks of garbage into it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries ended workers
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0] and packages.stat().st_mtime_ns == installed:
        connection, _ = listener.accept()
        try:
            asked, files = _asked(connection)
        except (OSError, ValueError):
            connection.close()  # a launcher that ended
            continue
        if not os.fork():
            listener.close()
            _become(connection, asked, files)
            return
        for file in files:
            os.close(file)
        connection.close()


def _asked(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    connection.settimeout(_TIMEOUT_SECONDS)
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    connection.settimeout(None)
    return json.loads(content), files


def _become(launcher: socket.socket, asked: dict[str, Any], files: list[int]) -> None:
    """The worker's life, in the fork. The launcher hears nothing more; it ends when this process's end closes its socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    numpy.random.seed()  # its global state is the server's, the same in all forks; Python's own sees to itself
    launcher.sendall(os.getpid().to_bytes(8, "big"))
    threading.Thread(target=_end_with, args=[launcher], daemon=True).start()
    sys.argv[:] = asked["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with(launcher: socket.socket) -> None:
    """A launcher that was killed takes its worker with it."""
    launcher.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
