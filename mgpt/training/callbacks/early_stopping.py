"""Stops a run whose loss no longer falls."""

from __future__ import annotations

from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.types import Callback, TrainerView


class EarlyStopping(Callback):
    """Stops when the logged loss has not fallen by `min_delta` for `patience` rows.

    Comes after `metrics` among the callbacks.
    """

    def __init__(self, metrics: MetricsLogger, patience: int, min_delta: float = 0.0) -> None:
        self._metrics, self._patience, self._min_delta = metrics, patience, min_delta

    def on_start(self, trainer: TrainerView) -> None:
        self.on_step(trainer)  # a run that was killed after its last step must not train another one

    def on_step(self, trainer: TrainerView) -> None:
        losses = [row["loss"] for row in self._metrics.rows]
        if len(losses) > self._patience:
            # Depends on the rows only, which are the same on every worker: all stop at the same step, resumed or not.
            trainer.stop = min(losses[-self._patience :]) > min(losses[: -self._patience]) - self._min_delta
