"""The training curve: rows of numbers that survive a resume without repeats, their CSV, and the line a person reads."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mgpt.training.callbacks.monitors import Gauge
from mgpt.training.trainer import Loop
from mgpt.training.types import TOTALS, Callback

Row = dict[str, float]


class Curve(Callback):
    """One row of numbers every `every` steps: the loss over the steps since the last row, speed, and the share of time that waited for
    data.

    Rows are part of the checkpoint, so a resumed run's curve has every step once. `sink` gets all rows so far, on worker 0. `gauges` add
    columns, of this worker.
    """

    def __init__(
        self, every: int, sink: Callable[[list[Row]], None] | None = None, gauges: Sequence[Gauge] = ()
    ) -> None:
        self.rows: list[Row] = []
        self._every, self._sink, self._gauges = every, sink, gauges
        self._sums: Tensor | None = None
        self._steps, self._waited, self._began = 0, 0.0, time.perf_counter()

    def on_start(self, loop: Loop) -> None:
        sums = torch.zeros_like(loop.parallel.totals, dtype=torch.float64)
        self._sums = sums if self._sums is None else self._sums.to(sums.device)
        self._began = time.perf_counter()

    def on_step(self, loop: Loop) -> None:
        assert self._sums is not None
        self._sums += loop.parallel.totals
        self._waited += loop.wait_seconds
        self._steps += 1
        for gauge in self._gauges:
            gauge.seen(loop)
        if loop.step % self._every == 0 or loop.step == loop.settings.steps:
            self.rows.append(self._row(loop, self._sums.tolist()))
            if self._sink is not None and loop.parallel.rank == 0:
                self._sink(self.rows)
            self._sums.zero_()
            self._steps, self._waited, self._began = 0, 0.0, time.perf_counter()

    def _row(self, loop: Loop, sums: list[float]) -> Row:
        total = dict(zip(TOTALS, sums, strict=True))
        seconds = time.perf_counter() - self._began
        assert loop.gradient_norm is not None
        row = {
            "step": loop.step,
            "loss": total["loss"] / max(total["supervised"], 1),
            "learning_rate": loop.learning_rate,
            "gradient_norm": float(loop.gradient_norm),
            "samples_per_second": total["samples"] / seconds,
            "tokens_per_second": total["tokens"] / seconds,
            "data_wait": self._waited / seconds,
            "padding": 1 - total["tokens"] / total["positions"],
            "step_seconds": seconds / self._steps,
        }
        for gauge in self._gauges:
            row |= gauge.columns(loop, seconds)
        return row

    def state(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "sums": [] if self._sums is None else self._sums.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)


def progress_line(row: Mapping[str, float], steps: int) -> str:
    """One line for a person: step, loss, rate, speed, share of waiting for data, time left (h:mm:ss)."""
    left = int((steps - row["step"]) * row["step_seconds"])
    clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    speed = f"{row['samples_per_second']:.0f} samples/s  data wait {row['data_wait']:.1%}"
    return (
        f"step {row['step']:.0f}/{steps}  loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {speed}  left {clock}"
    )


def curve_csv(rows: Sequence[Row]) -> str:
    """The curve as CSV, for a DVC plot. A column that some rows lack (a run resumed on another device) is empty in them."""
    if not rows:
        raise ValueError("the curve has no rows; log_every must not be above steps")
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
