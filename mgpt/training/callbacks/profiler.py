"""Profiles a range of training steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mgpt.training.types import Callback, TrainerView


class Profiler(Callback):
    """Profiles `steps` steps from step `first` (counted from 0) with torch and passes the Chrome trace to `write`.

    A run that resumes after `first` profiles nothing. Open the trace in https://ui.perfetto.dev.
    """

    def __init__(self, first: int, steps: int, write: Callable[[str, bytes], None]) -> None:
        self._first, self._last, self._write = first, first + steps, write
        self._profiler: Any = None

    def on_start(self, trainer: TrainerView) -> None:
        if trainer.step == self._first:
            self._profiler = torch.profiler.profile(profile_memory=True, record_shapes=True)
            self._profiler.start()

    def on_step(self, trainer: TrainerView) -> None:
        if trainer.step == self._last:
            self.on_end(trainer)
        self.on_start(trainer)

    def on_end(self, trainer: TrainerView) -> None:
        if self._profiler is None:
            return
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self._write(f"steps-{self._first}-{trainer.step}-worker-{trainer.parallel.rank}.json", path.read_bytes())
        self._profiler = None
