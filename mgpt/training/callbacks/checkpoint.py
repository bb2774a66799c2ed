"""Writes checkpoints at intervals, at the end, and before a preemption."""

from __future__ import annotations

import time
from collections.abc import Callable

from mgpt.training.async_checkpointer import AsyncCheckpointer
from mgpt.training.types import PREEMPTIONS, Callback, TrainerView


class CheckpointCallback(Callback):
    """Saves the state every `every` steps, at the end, and once after a worker learned that it will be preempted.

    Preemptions are part of the totals, so every worker sees them after the same step. They are read at the steps for
    which `can_read` says that reading from the device does not wait. `after_preemption` is called when that
    checkpoint is written.
    """

    def __init__(
        self,
        every: int,
        checkpointer: AsyncCheckpointer,
        can_read: Callable[[int], bool] = lambda step: False,
        after_preemption: Callable[[], None] = lambda: None,
    ) -> None:
        self._every, self._checkpointer = every, checkpointer
        self._can_read, self._after_preemption = can_read, after_preemption
        self._saved: int | None = None
        self._preempted = False
        self.stalls: list[float] = []  # seconds for which each checkpoint of this process blocked training

    def on_start(self, trainer: TrainerView) -> None:
        self._saved = trainer.step

    def on_step(self, trainer: TrainerView) -> None:
        can_read = not self._preempted and self._can_read(trainer.step)
        preempted = can_read and float(trainer.parallel.totals[PREEMPTIONS]) > 0
        if preempted or trainer.step % self._every == 0:
            self._save(trainer)
        if preempted:
            self._preempted = True
            self._checkpointer.wait()
            self._after_preemption()

    def on_end(self, trainer: TrainerView) -> None:
        if self._saved != trainer.step:
            self._save(trainer)
        self._checkpointer.wait()

    def _save(self, trainer: TrainerView) -> None:
        began = time.perf_counter()
        self._checkpointer.save(trainer.state())
        self.stalls.append(time.perf_counter() - began)
        self._saved = trainer.step
