"""The owner of a shared local Ray: `python -m mgpt.execution.local_ray FOLDER SETTINGS`. Started by `connect.start`, ended by idleness or a
signal.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from functools import partialmethod
from pathlib import Path
from typing import IO, Any

from mgpt.config.infrastructure import ClusterSettings
from mgpt.execution import forks
from mgpt.execution.session import LocalRay, fingerprints, process_start
from mgpt.storage import write_atomic

_LOOK_SECONDS = 1.0


class _Ended(Exception):
    """A signal asked for the end."""


def own(shared: LocalRay, settings: ClusterSettings) -> None:
    """Runs Ray until nobody has used it for the idle time. Returns at once where another process owns it already."""
    with shared.lock("owner") as owner:
        if not _acquire(owner, shared):
            return
        signal.signal(signal.SIGTERM, _end)
        address = _start_ray(shared, settings)
        try:
            _announce(shared, address)
            _wait_until_idle(shared, settings.idle_minutes * 60)
        except _Ended:
            shared.state.unlink(missing_ok=True)
        finally:
            _stop_ray(shared)


def _end(*_: Any) -> None:
    raise _Ended


def _acquire(owner: IO[bytes], shared: LocalRay) -> bool:
    """Takes the owner's lock, waiting for an owner that is just ending; False where one runs."""
    while True:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if shared.read() is not None:
                return False
            time.sleep(0.2)
        else:
            return shared.read() is None


def _start_ray(shared: LocalRay, settings: ClusterSettings) -> str:
    import ray
    from ray._private.parameter import RayParams

    # Ray's agent takes one fixed port unless told otherwise, which `ray.init` cannot (2.60); a cluster that somebody then starts on this
    # machine finds the port taken and accepts no job. With 0 it takes a free one.
    RayParams.__init__ = partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)  # type: ignore[method-assign,assignment]
    if sys.platform == "linux":  # elsewhere a fork of a process that has imported so much may not live
        forks.start(shared.folder)
    ray.init(
        address="local",  # not one that RAY_ADDRESS or a file in /tmp names
        num_cpus=settings.cpus or max(2, os.cpu_count() or 2),
        object_store_memory=settings.object_store_mb << 20,
        # Ray Train asks the dashboard whether a training still lives, and complains every second where there is none.
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        _temp_dir=str(shared.folder / "r"),
    )
    return str(ray.get_runtime_context().gcs_address)


def _announce(shared: LocalRay, address: str) -> None:
    state = {
        "address": address,
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "environment": fingerprints(),
    }
    write_atomic(shared.state, json.dumps(state).encode())


def _wait_until_idle(shared: LocalRay, limit: float) -> None:
    """Returns when no process has held the users' lock for `limit` seconds; the state is withdrawn before the lock is given back."""
    used = time.monotonic()
    with shared.lock("users") as users:
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                used = time.monotonic()
                continue
            if time.monotonic() - used > limit:
                shared.state.unlink()
                return
            fcntl.flock(users, fcntl.LOCK_UN)


def _stop_ray(shared: LocalRay) -> None:
    import ray

    ray.shutdown()
    shutil.rmtree(shared.folder / "r", ignore_errors=True)


if __name__ == "__main__":
    own(LocalRay(Path(sys.argv[1])), ClusterSettings(**json.loads(sys.argv[2])))
