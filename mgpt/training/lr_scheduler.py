"""Learning rates as pure functions of the step, so that a resumed run needs no other state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol

from mgpt.config.training import TrainingSettings


class LRScheduler(Protocol):
    """Returns the learning rate of a step, counted from 0."""

    def __call__(self, step: int) -> float: ...

    def state(self) -> dict[str, object]: ...


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `start` to `peak` over `warmup_steps`, then a cosine from `peak` to `minimum` over the rest."""

    peak: float
    minimum: float
    start: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return _cosine(self.peak, self.minimum, progress)

    def state(self) -> dict[str, object]:
        return {"kind": "cosine", **asdict(self)}


@dataclass(frozen=True)
class OriginalSchedule:
    """The original code's schedule (common/optims.py:56-112), to reproduce its runs.

    Its warm-up counts steps within the epoch, and its cosine counts from step 0 of the run instead of the end of the
    warm-up: the rate drops when the warm-up ends and never reaches `peak`.
    """

    peak: float
    minimum: float
    start: float
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * (step % self.steps_per_epoch) / self.warmup_steps
        return _cosine(self.peak, self.minimum, step / self.total_steps)

    def state(self) -> dict[str, object]:
        return {"kind": "original", **asdict(self)}


def _cosine(peak: float, minimum: float, progress: float) -> float:
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def make_lr_scheduler(settings: TrainingSettings) -> LRScheduler:
    """Returns the schedule of the settings."""
    common = (
        settings.learning_rate,
        settings.minimum_learning_rate,
        settings.warmup_learning_rate,
        settings.warmup_steps,
        settings.steps,
    )
    if settings.steps_per_epoch is not None:
        return OriginalSchedule(*common, settings.steps_per_epoch)
    return WarmupCosine(*common)
