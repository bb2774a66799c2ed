"""Memory use, as a column of the training curve."""

from __future__ import annotations

import psutil
import torch

from mgpt.training.types import TrainerView


class MemoryUsage:
    """`memory_gib`: on a GPU the peak of allocated memory since the last row, else the process's resident memory."""

    def on_step(self, trainer: TrainerView) -> None: ...

    def columns(self, trainer: TrainerView, seconds: float) -> dict[str, float]:
        if trainer.device.type != "cuda":
            return {"memory_gib": psutil.Process().memory_info().rss / 2**30}
        peak = torch.cuda.max_memory_allocated(trainer.device)
        torch.cuda.reset_peak_memory_stats(trainer.device)
        return {"memory_gib": peak / 2**30}
