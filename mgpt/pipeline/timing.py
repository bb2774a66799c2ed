"""Wall and CPU seconds of a stage, and the share of them that is work."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from mgpt.execution.session import every_local_ray


class Clock:
    """Seconds of a stage: those inside `measure` blocks are work, the rest of the process's life is orchestration.

    CPU seconds are those of this process, of its children that have ended, and of the project's local Ray meanwhile.
    """

    def __init__(self, project: Path) -> None:
        self.started = float(psutil.Process().create_time())
        self.work: dict[str, float] = {}
        self._project = project
        self._ray_before = _local_ray_cpu(project)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the block's time to the named work."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Adds seconds to the named work."""
        self.work[name] = self.work.get(name, 0.0) + seconds

    def reading(self) -> dict[str, Any]:
        """Returns the seconds until now, as they go into `timing.json`."""
        now = time.time()
        ray = {pid: seconds - self._ray_before.get(pid, 0.0) for pid, seconds in _local_ray_cpu(self._project).items()}
        return {
            "started": self.started,
            "ended": now,
            "seconds": now - self.started,
            "cpu_seconds": _own_cpu() + sum(max(0.0, seconds) for seconds in ray.values()),
            "work": dict(self.work),
        }


def _own_cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _local_ray_cpu(project: Path) -> dict[int, float]:
    """CPU seconds until now of each local Ray of the project, by its owner's process id."""
    states = [state for shared in every_local_ray(project) if (state := shared.read())]
    return {int(state["pid"]): _tree_cpu(int(state["pid"])) for state in states}


def _tree_cpu(pid: int) -> float:
    """CPU seconds of a process and all below it; those that have ended count in the process that waited for them."""
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(_process_cpu(process) for process in tree)


def _process_cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended meanwhile, or is a zombie
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
