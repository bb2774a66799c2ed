"""The training curve: rows of metrics that a resume does not repeat, and their CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mgpt.training.types import TOTALS, Callback, TrainerView

Row = dict[str, float]


class Metric(Protocol):
    """Adds columns to a row. Neither method may wait for the device."""

    def on_step(self, trainer: TrainerView) -> None: ...

    def columns(self, trainer: TrainerView, seconds: float) -> dict[str, float]: ...


class MetricsLogger(Callback):
    """Makes a row every `every` steps: loss over the steps since the last row, speed, share of time waiting for data.

    Rows are part of the checkpoint, so a resumed run's curve has every step once. `sink` receives all rows so far, on
    worker 0. `metrics` add columns, of this worker.
    """

    def __init__(
        self, every: int, sink: Callable[[list[Row]], None] | None = None, metrics: Sequence[Metric] = ()
    ) -> None:
        self.rows: list[Row] = []
        self._every, self._sink, self._metrics = every, sink, metrics
        self._sums: Tensor | None = None
        self._steps, self._waited, self._began = 0, 0.0, time.perf_counter()

    def on_start(self, trainer: TrainerView) -> None:
        sums = torch.zeros_like(trainer.parallel.totals, dtype=torch.float64)
        self._sums = sums if self._sums is None else self._sums.to(sums.device)
        self._began = time.perf_counter()

    def on_step(self, trainer: TrainerView) -> None:
        assert self._sums is not None
        self._sums += trainer.parallel.totals
        self._waited += trainer.wait_seconds
        self._steps += 1
        for metric in self._metrics:
            metric.on_step(trainer)
        if trainer.step % self._every == 0 or trainer.step == trainer.settings.steps:
            self.rows.append(self._row(trainer, self._sums.tolist()))
            if self._sink is not None and trainer.parallel.rank == 0:
                self._sink(self.rows)
            self._sums.zero_()
            self._steps, self._waited, self._began = 0, 0.0, time.perf_counter()

    def _row(self, trainer: TrainerView, sums: list[float]) -> Row:
        total = dict(zip(TOTALS, sums, strict=True))
        seconds = time.perf_counter() - self._began
        assert trainer.gradient_norm is not None
        row = {
            "step": trainer.step,
            "loss": total["loss"] / max(total["supervised"], 1),
            "learning_rate": trainer.learning_rate,
            "gradient_norm": float(trainer.gradient_norm),
            "samples_per_second": total["samples"] / seconds,
            "tokens_per_second": total["tokens"] / seconds,
            "data_wait": self._waited / seconds,
            "padding": 1 - total["tokens"] / total["positions"],
            "step_seconds": seconds / self._steps,
        }
        for metric in self._metrics:
            row |= metric.columns(trainer, seconds)
        return row

    def state(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "sums": [] if self._sums is None else self._sums.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)


def curve_csv(rows: Sequence[Row]) -> str:
    """Formats rows as CSV, for a DVC plot.

    A column that some rows lack (a run resumed on another device) is empty there.
    """
    if not rows:
        raise ValueError("the curve has no rows; log_every must not exceed steps")
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
