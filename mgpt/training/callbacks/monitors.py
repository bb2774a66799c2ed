"""What the curve shows beside loss and speed: FLOPs and MFU, and memory. And the profiler, which writes a trace of chosen steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from mgpt.training.flops import StepFlops, peak_flops
from mgpt.training.trainer import Loop
from mgpt.training.types import Callback


class Gauge(Protocol):
    """Adds columns to a row of the curve. `seen` is called after each step, `columns` once a row; both read nothing from the device that
    would make it wait."""

    def seen(self, loop: Loop) -> None: ...

    def columns(self, loop: Loop, seconds: float) -> dict[str, float]: ...


class Compute:
    """`teraflops`: this worker's FLOPs a second, by the rule of `mgpt.training.flops`. `mfu`: their share of the device's bf16 peak, where
    that is known."""

    def __init__(self, count: StepFlops) -> None:
        self._count, self._flops = count, 0.0

    def seen(self, loop: Loop) -> None:
        self._flops += self._count(loop.batches)  # as they were before their move to the device

    def columns(self, loop: Loop, seconds: float) -> dict[str, float]:
        rate, self._flops = self._flops / seconds, 0.0
        peak = peak_flops(loop.device)
        return {"teraflops": rate / 1e12} | ({} if peak is None else {"mfu": rate / peak})


class Memory:
    """`memory_gib`: on a GPU the most that tensors took since the last row, else the process's resident memory."""

    def seen(self, loop: Loop) -> None: ...

    def columns(self, loop: Loop, seconds: float) -> dict[str, float]:
        if loop.device.type != "cuda":
            return {"memory_gib": psutil.Process().memory_info().rss / 2**30}
        peak = torch.cuda.max_memory_allocated(loop.device)
        torch.cuda.reset_peak_memory_stats(loop.device)
        return {"memory_gib": peak / 2**30}


class Profile(Callback):
    """Runs torch's profiler over `steps` steps from step `first` on (counted from 0), and gives its Chrome trace to `write` as bytes.

    A run that is resumed behind `first` profiles nothing. Open the trace in https://ui.perfetto.dev.
    """

    def __init__(self, first: int, steps: int, write: Callable[[str, bytes], None]) -> None:
        self._first, self._last, self._write = first, first + steps, write
        self._profiler: Any = None

    def on_start(self, loop: Loop) -> None:
        if loop.step == self._first:
            self._profiler = torch.profiler.profile(profile_memory=True, record_shapes=True)
            self._profiler.start()

    def on_step(self, loop: Loop) -> None:
        if loop.step == self._last:
            self.on_end(loop)
        self.on_start(loop)

    def on_end(self, loop: Loop) -> None:
        if self._profiler is None:
            return
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            self._write(f"steps-{self._first}-{loop.step}-worker-{loop.parallel.rank}.json", path.read_bytes())
        self._profiler = None
