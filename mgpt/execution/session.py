"""Connects a stage to Ray: the cluster whose job it is, or a local Ray that the stages of a project share.

Starting Ray costs many seconds, so the local one outlives a stage. It has one owner, the process of `mgpt.execution.local_ray`, which ends it
when no stage has used it for `cluster.idle_minutes`, or at `mgpt ray stop`. It is found through a folder of this user and project,
guarded by a token, and no other Ray on the machine is ever touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mgpt.config.infrastructure import ClusterSettings
from mgpt.storage import write_atomic

START_SECONDS = 300  # how long the local Ray may take to come up on a busy machine
# A process that is idle for a second would be ended, and the next task import the model's code and load what feeding needs anew.
KEEP_PROCESSES = {"RAY_idle_worker_killing_time_threshold_ms": "60000", "RAY_num_workers_soft_limit": "8"}
_IMPORT_SECONDS = 30  # how long its owner may take until it holds the owner's lock
# Variables that workers need as the stage has them; PYTHONPATH and threads are set where the local Ray starts.
FORWARDED = ("AWS_", "MLFLOW_", "OPENAI_", "MGPT_REPAIR_")
_INSIDE_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job server for an entry point


@dataclass(frozen=True)
class LocalRay:
    """Where one shared local Ray keeps its state. `folder` is short, since Ray's sockets lie below it."""

    folder: Path

    @property
    def state(self) -> Path:
        """Address, owner and environment, present while it runs."""
        return self.folder / "state.json"

    @property
    def token(self) -> Path:
        """The secret without which nobody else on the network may use it."""
        return self.folder / "token"

    @property
    def log(self) -> Path:
        """What the owner printed."""
        return self.folder / "log.txt"

    def lock(self, name: str) -> IO[bytes]:
        """An open lock file; closing it, or the process's end, releases it."""
        return open(self.folder / f"{name}.lock", "ab")

    def owned(self) -> bool:
        """Whether a process owns it: it runs, or is coming up or going down."""
        with self.lock("owner") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def read(self) -> dict[str, Any] | None:
        """The state, or None while none runs."""
        try:
            found: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found if alive(found["pid"], found["started"]) else None


def inside_job() -> bool:
    """Whether this process is the entry point of a Ray job."""
    return _INSIDE_JOB in os.environ


def forwarded_environment() -> dict[str, str]:
    """The variables that workers need as this process has them."""
    return {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}


def fingerprints() -> dict[str, str]:
    """Hashes of the forwarded variables, to see a change without keeping a secret."""
    return {name: hashlib.sha256(value.encode()).hexdigest() for name, value in forwarded_environment().items()}


def local_ray(settings: ClusterSettings, project: Path) -> LocalRay:
    """The local Ray of this user, project and size, running or not. Makes its folder and token."""
    size = f"{settings.cpus}/{settings.object_store_mb}/{sys.prefix}"
    folder = state_folder(project) / hashlib.sha256(size.encode()).hexdigest()[:4]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = LocalRay(folder)
    if not found.token.exists():
        write_atomic(found.token, secrets.token_hex(32).encode())
        found.token.chmod(0o600)
    return found


def every_local_ray(project: Path) -> list[LocalRay]:
    """All of the project's, whatever their size."""
    return [LocalRay(folder) for folder in sorted(state_folder(project).glob("*")) if folder.is_dir()]


def start(settings: ClusterSettings, project: Path) -> LocalRay:
    """Sees to it that the local Ray runs or is coming up; returns at once, so that a stage can do other work meanwhile."""
    shared = local_ray(settings, project)
    if shared.read() is None and not shared.owned():
        command = [
            sys.executable,
            "-m",
            "mgpt.execution.local_ray",
            str(shared.folder),
            json.dumps(settings.model_dump()),
        ]
        # Its own session: a kill of the stage's process group must leave it alone.
        with open(shared.log, "ab") as log:
            subprocess.Popen(
                command,
                cwd=project,
                env=_environment(shared, project),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    return shared


@contextmanager
def connect(settings: ClusterSettings, project: Path) -> Iterator[None]:
    """Connects this process to Ray for the block.

    Raises:
        RuntimeError: the local Ray did not come up; the message ends with what it printed.
    """
    if inside_job():
        import ray

        ray.init(address="auto", log_to_driver=True)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with _use(settings, project) as (shared, state):
        # Ray reads these when it is imported, not when it connects.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(shared.token))
        import ray

        ray.init(
            address=state["address"], runtime_env=_for_workers(state), log_to_driver=True, logging_level=logging.WARNING
        )
        try:
            yield
        finally:
            ray.shutdown()


def stop(project: Path) -> list[str]:
    """Ends the project's local Rays; returns what was done, a line each."""
    lines = []
    for shared in every_local_ray(project):
        state = shared.read()
        if state is None:
            continue
        _end(state["pid"], state["started"])
        lines.append(f"stopped the local Ray at {state['address']} (pid {state['pid']})")
    return lines


def _end(pid: int, started: str) -> None:
    """Asks a process to end, and after half a minute ends it; its Ray processes end with it."""
    for signal_number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        os.kill(pid, signal_number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not alive(pid, started):
                return
            time.sleep(0.1)


def alive(pid: int, started: str) -> bool:
    """Whether the process runs that had this pid and start: a pid alone may since be somebody else's."""
    return process_start(pid) == started


def process_start(pid: int) -> str | None:
    """When a process started, in a form to compare; None when it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def state_folder(project: Path) -> Path:
    """Where this machine keeps what belongs to a project's running processes: short, private to the user, gone with a reboot."""
    name = hashlib.sha256(str(project.resolve()).encode()).hexdigest()[:8]
    root = Path(tempfile.gettempdir())
    return (root if len(str(root)) < 20 else Path("/tmp")) / f"mgpt-{os.getuid()}" / name


def _environment(shared: LocalRay, project: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(project), os.environ.get("PYTHONPATH", "")]))
    fixed = {
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(shared.token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # On a busy machine Ray's own limits are too short: its node would end because a helper process was still importing.
    fixed |= {
        "RAY_raylet_start_wait_time_s": str(START_SECONDS),
        "RAY_agent_register_timeout_ms": str(START_SECONDS * 1000),
    }
    # Ray's stages of one process each share few cores: more threads than one would only fight.
    return {**os.environ, "OMP_NUM_THREADS": "1", **fixed, **KEEP_PROCESSES}


@contextmanager
def _use(settings: ClusterSettings, project: Path) -> Iterator[tuple[LocalRay, dict[str, Any]]]:
    """Waits for the local Ray and holds it: while any process has the shared lock, it does not end for idleness."""
    begun = time.monotonic()
    shared = start(settings, project)
    with shared.lock("users") as users:
        while time.monotonic() < begun + START_SECONDS:
            fcntl.flock(users, fcntl.LOCK_SH)
            state = shared.read()
            if state is not None:
                yield shared, state
                return
            fcntl.flock(users, fcntl.LOCK_UN)
            if time.monotonic() > begun + _IMPORT_SECONDS and not shared.owned():
                break
            time.sleep(0.1)
    tail = "\n".join(shared.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    raise RuntimeError(
        f"the local Ray did not come up (waited {time.monotonic() - begun:.0f} s); its owner printed:\n{tail}"
    )


def _for_workers(state: dict[str, Any]) -> dict[str, Any]:
    """What workers must be told: which Ray is theirs, where several run, and what changed in the environment since it was started."""
    now, before = fingerprints(), state["environment"]
    changed = {name: value for name, value in forwarded_environment().items() if before.get(name) != now[name]}
    return {"env_vars": {"RAY_ADDRESS": state["address"], **changed}}
