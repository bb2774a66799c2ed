"""A fork server for the workers of a local Ray: `python -m mgpt.execution.forks SOCKET PACKAGES MODULE...`.

A training on Ray takes some ten processes. Each imports Ray twice (`setup_worker.py`, then `default_worker.py`), most of them torch, and
half of them transformers: seconds of a core each, and a copy of it all in memory. Here one process imports that once, and every worker is a
fork of it: the raylet runs `mgpt.execution.launch` for each, which asks here and waits.

Imported before the fork is what comes from installed packages alone; this project's code is read from the disk by each worker. And nothing
of Ray's, which reads what a worker is to be from the environment when it is imported. Tried without gain: idle processes that have imported
it all, which Ray gives to tasks but never to actors.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy

from mgpt.execution import launch
from mgpt.execution.launch import ADDRESS, INSTEAD

# What workers of trainings and evaluations import, directly or not, and takes long.
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
_TIMEOUT_SECONDS = 10.0  # for a launcher to say what it wants
_STARTED: list[subprocess.Popen[bytes]] = []  # a server lives as long as its standard input, which this keeps open


def start(folder: Path) -> None:
    """Starts a server with its socket in `folder`, for the Ray that this process starts next. It ends with this process."""
    from ray._private import ray_constants, workers
    from ray._private.parameter import RayParams

    address = folder / "forks"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        command = [sys.executable, "-m", "mgpt.execution.forks", str(listener.fileno()), str(PACKAGES), *PRELOADED]
        _STARTED.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]))
    instead = Path(next(iter(workers.__path__))) / ray_constants.SETUP_WORKER_FILENAME
    os.environ.update({ADDRESS: str(address), INSTEAD: str(instead)})
    RayParams.__init__ = partialmethod(RayParams.__init__, setup_worker_path=launch.__file__)  # type: ignore[method-assign,assignment]


def serve(listener: socket.socket, packages: Path, modules: list[str]) -> None:
    """Forks a worker for each launcher, until standard input ends or a package is installed: what was imported may be another's now."""
    installed = packages.stat().st_mtime_ns
    for name in modules:
        importlib.import_module(name)
    if "ray" in sys.modules:
        raise RuntimeError("something in PRELOADED imports Ray, whose workers would all be the same one; leave it out")
    gc.collect()
    gc.freeze()  # memory that forks share as long as nobody writes marks of garbage into it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries ended workers
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0] and packages.stat().st_mtime_ns == installed:
        connection, _ = listener.accept()
        if not os.fork():  # before anything is read: a launcher that says nothing holds up nobody
            listener.close()
            _become(connection)
            return
        connection.close()


def _become(launcher: socket.socket) -> None:
    """The worker's life, in the fork. The launcher hears its process id, and no more; the socket closes with this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    launcher.settimeout(_TIMEOUT_SECONDS)
    size, files, _, _ = socket.recv_fds(launcher, 8, 3)
    content = launcher.makefile("rb").read(int.from_bytes(size, "big"))
    if len(files) != 3 or len(content) != int.from_bytes(size, "big"):
        return  # a launcher that ended
    launcher.settimeout(None)
    _take_over(json.loads(content), files)
    launcher.sendall(os.getpid().to_bytes(8, "big"))
    threading.Thread(target=_end_with, args=[launcher], daemon=True).start()
    runpy.run_path(sys.argv[0], run_name="__main__")


def _take_over(asked: dict[str, Any], files: list[int]) -> None:
    """What a process has from the one that starts it, as the raylet and Ray's settings gave it to the launcher."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(asked["open_files"], most), most))
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked_signals"])
    # Out of memory, the system ends a worker first; Ray lets the raylet's children be chosen by this.
    Path("/proc/self/oom_score_adj").write_text(asked["oom_score_adj"], encoding="ascii")
    # What was settled in the server by its own environment or chance, and is the same in all forks. Python's own random sees to itself.
    tempfile.tempdir = None
    numpy.random.seed()
    sys.argv[:] = asked["arguments"]


def _end_with(launcher: socket.socket) -> None:
    """A launcher that was killed takes its worker with it."""
    try:
        launcher.recv(1)
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:])
