"""The training curve of a run (`curve.csv`), read by the driver while worker 0 writes it."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Mapping

from mgpt.execution.types import CURVE, TrainRequest
from mgpt.storage import Store

_POLL_SECONDS = 0.5
_NOT_METRICS = ("step", "step_seconds")  # columns that are not logged to the tracker


def read_curve(content: bytes) -> list[dict[str, float]]:
    """Returns the rows of a `curve.csv`."""
    return [
        {key: float(value) for key, value in row.items() if value}
        for row in csv.DictReader(io.StringIO(content.decode()))
    ]


def progress_line(row: Mapping[str, float], steps: int) -> str:
    """Formats a row for the console: step, loss, learning rate, speed, share of time waiting for data, time left."""
    left = int((steps - row["step"]) * row["step_seconds"])
    clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    speed = f"{row['samples_per_second']:.0f} samples/s  data wait {row['data_wait']:.1%}"
    return (
        f"step {row['step']:.0f}/{steps}  loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {speed}  left {clock}"
    )


class CurveFollower:
    """Prints a line per row of the curve, and logs each step to the tracker once, for the duration of a `with` block.

    Worker 0 repeats steps after a failure; they have the numbers of the first time, so rows already shown are skipped.
    """

    def __init__(self, request: TrainRequest) -> None:
        self._request, self._store, self._shown = request, Store(request.run_uri), 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._show()
        self._show()

    def _show(self) -> None:
        uri = f"{self._request.run_uri}/{CURVE}"
        for row in read_curve(self._store.read(uri)) if self._store.exists(uri) else []:
            if row["step"] > self._shown:
                self._shown = row["step"]
                print(progress_line(row, self._request.settings.steps), flush=True)
                if self._request.tracker is not None:
                    metrics = {key: value for key, value in row.items() if key not in _NOT_METRICS}
                    self._request.tracker.log_metrics(metrics, step=int(row["step"]))
