"""How workers share one optimiser step. Applied from outside the model, which knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgpt.training.batch import Batch


class Replicated:
    """Every worker holds all trainables; gradients and totals are summed over workers in one reduction of one flat buffer.

    The trainables of this method are small (a projection and LoRA), so one reduction costs less than overlapping several, and:
    - a worker whose batch has no image still takes part, with zeros for the projection: nothing waits for an unused parameter;
    - the layout of the buffer never changes, so the sum has the same bits in the first step after a resume as in any other (DDP rebuilds
      its buckets after the first step).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], totals: int) -> None:
        self.parameters = dict(parameters)
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        device = next(iter(self.parameters.values())).device
        self._flat = torch.zeros(sum(sizes) + totals, dtype=torch.float32, device=device)
        self.gradients, self.totals = self._flat[: sum(sizes)], self._flat[sum(sizes) :]
        for parameter, view in zip(self.parameters.values(), self.gradients.split(sizes), strict=True):
            parameter.grad = view.view_as(parameter)
        self._copy_from_first()

    def _copy_from_first(self) -> None:
        if self.world_size > 1:
            for parameter in self.parameters.values():
                dist.broadcast(parameter.data, src=0)

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def align(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """This worker's batches of a step as it shall run them. Workers may run different ones: nothing waits within a step."""
        return batches

    def start(self) -> None:
        """Clears gradients and totals before the first backward pass of a step."""
        self._flat.zero_()

    def reduce(self) -> None:
        """Sums gradients and totals over workers."""
        if self.world_size > 1:
            dist.all_reduce(self._flat)

    def normalise(self, count: Tensor, clip: float | None) -> Tensor:
        """Divides the gradients by `count` and scales them to a norm of at most `clip`; returns the norm before clipping. Reads nothing
        from the device."""
        self.gradients.div_(count)
        norm = torch.linalg.vector_norm(self.gradients)
        if clip is not None:
            self.gradients.mul_(torch.clamp(clip / (norm + 1e-6), max=1.0))
        return norm

    def gather(self, value: Any) -> list[Any]:
        """`value` of every worker, in rank order, on every worker."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
