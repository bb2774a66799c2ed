"""Wall and CPU seconds of a stage, and the share of them that is work."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from mgpt.execution.session import every_local_ray

_SAMPLE_SECONDS = 2.0


class Clock:
    """Seconds of a stage: those inside `measure` blocks are work, the rest of the process's life is orchestration.

    CPU seconds are those of this process, of its children that have ended, and of the project's local Ray meanwhile
    (`RayMeter`).
    """

    def __init__(self, project: Path) -> None:
        self.started = float(psutil.Process().create_time())
        self.work: dict[str, float] = {}
        self._ray = RayMeter(project)

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
        return {
            "started": self.started,
            "ended": now,
            "seconds": now - self.started,
            "cpu_seconds": _own_cpu() + self._ray.seconds(),
            "work": dict(self.work),
        }


class RayMeter:
    """CPU seconds of all processes of a project's local Rays from now on.

    A thread samples them: Ray does not wait for workers that end, so the system does not add up their time. What a
    process used after its last sample is lost.
    """

    def __init__(self, project: Path, interval: float = _SAMPLE_SECONDS) -> None:
        self._project = project
        self._before: dict[psutil.Process, float] = {}
        self._latest: dict[psutil.Process, float] = {}
        self._lock = threading.Lock()
        self._sample()
        self._before = dict(self._latest)
        threading.Thread(target=self._run, args=(interval,), daemon=True, name="ray-meter").start()

    def seconds(self) -> float:
        """Returns the CPU seconds until now."""
        with self._lock:
            self._sample()
            return sum(used - self._before.get(process, 0.0) for process, used in self._latest.items())

    def _run(self, interval: float) -> None:
        while True:
            time.sleep(interval)
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        for process in _ray_processes(self._project):
            try:
                times = process.cpu_times()
            except psutil.Error:  # it ended meanwhile, or is a zombie
                continue
            self._latest[process] = float(times.user + times.system)


def _own_cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _ray_processes(project: Path) -> Iterator[psutil.Process]:
    """Yields the owner of each local Ray of the project, and all processes below it."""
    for shared in every_local_ray(project):
        state = shared.read()
        if state is None:
            continue
        try:
            owner = psutil.Process(int(state["pid"]))
            yield from [owner, *owner.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
