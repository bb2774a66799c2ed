"""FLOP/s and model FLOPs utilisation, as columns of the training curve."""

from __future__ import annotations

from mgpt.training.flops import StepFlops, peak_flops
from mgpt.training.types import TrainerView


class ModelFlops:
    """`teraflops`: this worker's FLOP/s, by the rule of `mgpt.training.flops`.

    `mfu`: their share of the device's bf16 peak.
    """

    def __init__(self, step_flops: StepFlops) -> None:
        self._step_flops, self._flops = step_flops, 0.0

    def on_step(self, trainer: TrainerView) -> None:
        self._flops += self._step_flops(trainer.batches)  # these are on the CPU; the trainer moves copies

    def columns(self, trainer: TrainerView, seconds: float) -> dict[str, float]:
        rate, self._flops = self._flops / seconds, 0.0
        peak = peak_flops(trainer.device)
        return {"teraflops": rate / 1e12} | ({} if peak is None else {"mfu": rate / peak})
