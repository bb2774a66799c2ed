"""Connects a stage to Ray: to the cluster whose job it is, or to a local Ray that the stages of a project share.

Starting Ray takes many seconds, so the local one outlives a stage. It is owned by the process of
`mgpt.execution.local_ray`, which stops it when no stage has used it for `cluster.idle_minutes`, or on request. Its
state lies in a folder of this user and project. A token guards it, and no other Ray on the machine is ever touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
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

import psutil

from mgpt.config.infrastructure import ClusterSettings
from mgpt.storage import write_atomic

START_SECONDS = 300  # limit for the start of the local Ray on a busy machine, in all attempts
START_ATTEMPTS = 3  # Ray's node gives up after 15 s on a very busy machine
_IMPORT_SECONDS = 30  # limit for its owner to import and take the owner's lock
# Ray ends a process that was idle for a second; the next task would import the model's code and load its files again.
KEEP_PROCESSES = {"RAY_idle_worker_killing_time_threshold_ms": "60000", "RAY_num_workers_soft_limit": "8"}
# Variables that workers need as the stage has them; PYTHONPATH and threads are set where the local Ray starts.
FORWARDED = ("AWS_", "MLFLOW_", "OPENAI_", "MGPT_REPAIR_")
_INSIDE_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job server for an entry point


@dataclass(frozen=True)
class LocalRay:
    """The state of one shared local Ray on disk. `folder` is short, since the paths of Ray's sockets are limited."""

    folder: Path

    @property
    def state(self) -> Path:
        """File with address, processes and environment, present while Ray runs."""
        return self.folder / "state.json"

    @property
    def process(self) -> Path:
        """File with the process of `ray start`, present from its start to its end."""
        return self.folder / "ray.json"

    @property
    def token(self) -> Path:
        """File with the secret that a client must present."""
        return self.folder / "token"

    @property
    def log(self) -> Path:
        """Log file with the output of the owner process (`mgpt.execution.local_ray`)."""
        return self.folder / "log.txt"

    def lock(self, name: str) -> IO[bytes]:
        """Returns an open lock file; closing it, or the end of the process, releases its lock."""
        return open(self.folder / f"{name}.lock", "ab")

    def owned(self) -> bool:
        """Returns whether an owner runs, be it that Ray is starting, running or stopping."""
        with self.lock("owner") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def read(self) -> dict[str, Any] | None:
        """Returns the state, or None while no Ray runs."""
        try:
            state: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return state if alive(state["pid"], state["started"]) else None

    def end_ray(self) -> None:
        """Deletes the state file and stops `ray start`, which stops its Ray.

        Called by the owner process, or by another one after the owner has ended.
        """
        self.state.unlink(missing_ok=True)
        if self.process.exists():
            process = json.loads(self.process.read_text(encoding="utf-8"))
            end_process(process["pid"], process["started"])
            self.process.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "r", ignore_errors=True)


def inside_job() -> bool:
    """Returns whether this process is the entry point of a Ray job."""
    return _INSIDE_JOB in os.environ


def forwarded_environment() -> dict[str, str]:
    """Returns the variables that workers need as this process has them."""
    return {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}


def environment_hashes() -> dict[str, str]:
    """Returns hashes of the forwarded variables, which show a change without keeping a secret."""
    return {name: hashlib.sha256(value.encode()).hexdigest() for name, value in forwarded_environment().items()}


def local_ray(settings: ClusterSettings, project: Path) -> LocalRay:
    """Returns the local Ray of this user, project and size, running or not. Creates its folder and token."""
    size = f"{settings.cpus}/{settings.object_store_mb}/{sys.prefix}"
    folder = state_folder(project) / hashlib.sha256(size.encode()).hexdigest()[:4]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    shared = LocalRay(folder)
    if not shared.token.exists():
        write_atomic(shared.token, secrets.token_hex(32).encode())
        shared.token.chmod(0o600)
    return shared


def every_local_ray(project: Path) -> list[LocalRay]:
    """Returns the project's local Rays of all sizes."""
    return [LocalRay(folder) for folder in sorted(state_folder(project).glob("*")) if folder.is_dir()]


def state_folder(project: Path) -> Path:
    """Returns this machine's folder for a project's processes: short, private to the user, gone after a reboot."""
    name = hashlib.sha256(str(project.resolve()).encode()).hexdigest()[:8]
    root = Path(tempfile.gettempdir())
    return (root if len(str(root)) < 20 else Path("/tmp")) / f"mgpt-{os.getuid()}" / name


def start(settings: ClusterSettings, project: Path) -> LocalRay:
    """Starts the local Ray unless it runs or is starting. Returns at once, so that a stage can work meanwhile."""
    shared = local_ray(settings, project)
    if shared.read() is None and not shared.owned():
        owner = ["-m", "mgpt.execution.local_ray", str(shared.folder), json.dumps(settings.model_dump())]
        with open(shared.log, "ab") as log:
            subprocess.Popen(
                [sys.executable, *owner],
                cwd=project,
                env=_environment(shared, project),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a kill of the stage's process group must not reach it
            )
    return shared


@contextmanager
def connect(settings: ClusterSettings, project: Path) -> Iterator[None]:
    """Connects this process to Ray for the block.

    Raises:
        RuntimeError: the local Ray did not start; the message ends with the owner's output.
    """
    if inside_job():
        with _connected(address="auto"):
            yield
        return
    with _in_use(settings, project) as (shared, state):
        # Ray reads these when it is imported, not when it connects.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(shared.token))
        with _connected(state["address"], runtime_env=_runtime_env(state), logging_level=logging.WARNING):
            yield


def stop(project: Path) -> list[str]:
    """Stops the project's local Rays; returns a line about each."""
    lines = []
    for shared in every_local_ray(project):
        state = shared.read()
        if state is not None:
            end_process(state["pid"], state["started"])
            shared.end_ray()
            lines.append(f"stopped the local Ray at {state['address']} (pid {state['pid']})")
    return lines


def end_process(pid: int, started: str) -> None:
    """Ends a process: SIGTERM, and SIGKILL after half a minute. Does nothing if it is gone."""
    for signal_number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        if not alive(pid, started):
            return
        os.kill(pid, signal_number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and alive(pid, started):
            time.sleep(0.1)


def alive(pid: int, started: str) -> bool:
    """Returns whether the process with this pid and start time runs: a pid alone may have been reused."""
    return process_start(pid) == started


def process_start(pid: int) -> str | None:
    """Returns a process's start time in a form to compare, or None when it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def _environment(shared: LocalRay, project: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(project), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",  # many processes share few cores
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(shared.token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own limits are too short on a busy machine: the node would end while a helper process still imports.
        # `ray start` does not notice a raylet that died, so the wait for it leaves time for further attempts.
        "RAY_raylet_start_wait_time_s": str(START_SECONDS // START_ATTEMPTS),
        "RAY_agent_register_timeout_ms": str(START_SECONDS * 1000),
        **KEEP_PROCESSES,
    }


@contextmanager
def _connected(address: str, **options: Any) -> Iterator[None]:
    import ray.util

    ray.util.disable_log_once_globally()  # remarks of Ray Data on progress bars and on operators that wait for a CPU
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it reports the start and end of each dataset
    ray.init(address=address, log_to_driver=True, **options)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _in_use(settings: ClusterSettings, project: Path) -> Iterator[tuple[LocalRay, dict[str, Any]]]:
    """Waits for the local Ray and holds the users' lock, which keeps the owner from stopping it."""
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
        f"the local Ray did not start within {time.monotonic() - begun:.0f} s; its owner printed:\n{tail}"
    )


def _runtime_env(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables for workers: the address of their Ray, and what changed since it was started."""
    now, before = environment_hashes(), state["environment"]
    changed = {name: value for name, value in forwarded_environment().items() if before.get(name) != now[name]}
    return {"env_vars": {"RAY_ADDRESS": state["address"], **changed}}
