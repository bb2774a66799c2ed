"""Stops training when loss or gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgpt.training.types import Callback, TrainerView


class NonFiniteError(ArithmeticError):
    """Loss or gradient norm is NaN or infinite. `ids` are the samples of the batches that caused it."""

    def __init__(self, step: int, ids: Sequence[str], reason: str) -> None:
        fix = "Check these samples, lower learning_rate, or set gradient_clip"
        super().__init__(f"step {step}: {reason}; samples: {', '.join(ids)}. {fix}")
        self.step, self.ids = step, tuple(ids)


class NonFiniteCheck(Callback):
    """Stops before a checkpoint could keep damaged weights.

    Remembers each step's loss and gradient norm on the device, and reads them at the steps for which `is_due` is true.
    """

    def __init__(self, is_due: Callable[[int], bool]) -> None:
        self._is_due = is_due
        self._pending: list[tuple[int, Tensor, list[Tensor], list[tuple[str, ...]]]] = []

    def on_step(self, trainer: TrainerView) -> None:
        assert trainer.gradient_norm is not None
        numbers = torch.stack([trainer.parallel.totals[0], trainer.gradient_norm])
        ids = [batch.ids for batch in trainer.batches]
        self._pending.append((trainer.step - 1, numbers, trainer.losses, ids))
        if self._is_due(trainer.step):
            for pending in self._pending:
                if not bool(torch.isfinite(pending[1]).all()):
                    raise self._error(trainer, *pending)
            self._pending.clear()

    def _error(
        self, trainer: TrainerView, step: int, numbers: Tensor, losses: list[Tensor], ids: list[tuple[str, ...]]
    ) -> NonFiniteError:
        broken = [names for loss, names in zip(losses, ids, strict=True) if not math.isfinite(float(loss))]
        samples = _gather(trainer, broken)
        if samples:
            return NonFiniteError(step, samples, "the loss is not finite")
        return NonFiniteError(step, _gather(trainer, ids), f"the gradient norm is {float(numbers[1])}")


def _gather(trainer: TrainerView, ids: list[tuple[str, ...]]) -> list[str]:
    own = [name for names in ids for name in names]
    return [name for names in trainer.parallel.gather(own) for name in names]
