"""The owner of a shared local Ray: `python -m mgpt.execution.local_ray FOLDER SETTINGS`, started by `session.start`.

Starts Ray by its command line, whose options, unlike those of `ray.init`, choose every port and folder. Stops it when
it is idle or on SIGTERM.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import IO, Any

from mgpt.config.infrastructure import ClusterSettings
from mgpt.execution.session import (
    START_ATTEMPTS,
    START_SECONDS,
    LocalRay,
    environment_hashes,
    process_start,
)
from mgpt.storage import write_atomic

_POLL_SECONDS = 1.0


class _TerminatedError(Exception):
    """SIGTERM arrived."""


def own(shared: LocalRay, settings: ClusterSettings) -> None:
    """Runs Ray until nobody has used it for the idle time. Returns at once if another process owns it already."""
    with shared.lock("owner") as owner:
        if not _acquire(owner, shared):
            return
        shared.end_ray()  # of an owner that was killed
        try:
            process, address = _start_ray(shared, settings)
            signal.signal(signal.SIGTERM, _terminate)  # not before: `ray.init` replaces it
            _announce(shared, address)
            _wait_until_idle(shared, process, settings.idle_minutes * 60)
        except _TerminatedError:
            pass
        finally:
            shared.end_ray()


def _terminate(*_: Any) -> None:
    raise _TerminatedError


def _acquire(owner: IO[bytes], shared: LocalRay) -> bool:
    """Takes the owner's lock, waiting for an owner that is stopping; returns False if one runs."""
    while True:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if shared.read() is not None:
                return False
            time.sleep(0.2)
        else:
            return shared.read() is None


def _start_ray(shared: LocalRay, settings: ClusterSettings) -> tuple[subprocess.Popen[bytes], str]:
    """Returns the process of `ray start` and the address of its Ray. Raises RuntimeError."""
    for _ in range(START_ATTEMPTS):
        ports = dict(zip(("port", "ray-client-server-port", "dashboard-port"), _free_ports(3), strict=True))
        process = subprocess.Popen(_command(shared, settings, ports))
        started = {"pid": process.pid, "started": process_start(process.pid)}
        write_atomic(shared.process, json.dumps(started).encode())
        if _answers(process, ports["port"]):
            return process, f"127.0.0.1:{ports['port']}"
        shared.end_ray()
    raise RuntimeError(f"`ray start` failed {START_ATTEMPTS} times; see its output above")


def _command(shared: LocalRay, settings: ClusterSettings, ports: dict[str, int]) -> list[str]:
    options = {
        **ports,
        # 0: a free one. With the fixed default, another cluster on this machine would accept no job.
        "dashboard-agent-listen-port": 0,
        "dashboard-host": "127.0.0.1",
        # Ray Train's helper process queries the dashboard, and logs an error every second if there is none.
        "include-dashboard": "true",
        "num-cpus": settings.cpus or max(2, os.cpu_count() or 2),
        "object-store-memory": settings.object_store_mb << 20,
        "temp-dir": shared.folder / "r",
    }
    ray = Path(sysconfig.get_path("scripts")) / "ray"
    return [str(ray), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until Ray accepts a driver; returns False if `ray start` ended or took too long."""
    import ray

    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()  # a driver would wait long for this port
            ray.init(address=f"127.0.0.1:{port}", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError):
            time.sleep(0.2)
        else:
            ray.shutdown()
            return True
    return False


def _announce(shared: LocalRay, address: str) -> None:
    owner = {"pid": os.getpid(), "started": process_start(os.getpid())}
    state = {"address": address, **owner, "environment": environment_hashes()}
    write_atomic(shared.state, json.dumps(state).encode())


def _wait_until_idle(shared: LocalRay, process: subprocess.Popen[bytes], limit: float) -> None:
    """Returns when Ray ended, or when nobody held the users' lock for `limit` seconds.

    The state is withdrawn before the lock is given back, so that no client connects to a Ray that is stopping.
    """
    used = time.monotonic()
    with shared.lock("users") as users:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                used = time.monotonic()
                continue
            if time.monotonic() - used > limit:
                shared.state.unlink()
                return
            fcntl.flock(users, fcntl.LOCK_UN)


if __name__ == "__main__":
    own(LocalRay(Path(sys.argv[1])), ClusterSettings(**json.loads(sys.argv[2])))
