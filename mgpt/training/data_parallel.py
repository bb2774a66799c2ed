"""Data parallelism: how workers share one optimizer step. Applied from outside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgpt.training.batch import Batch


class DataParallel:
    """Every worker holds all trainable parameters; one all-reduce of one flat buffer sums gradients and totals.

    The trainable parameters of this method are few (a projection and LoRA), so one reduction costs less than
    overlapping several, and unlike DDP:
    - a worker whose batch has no image takes part with zeros for the projection: nothing waits for an unused parameter;
    - the buffer's layout never changes, so the sum has the same bits in the first step after a resume as in any other
      (DDP rebuilds its buckets after the first step).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], totals: int) -> None:
        """totals: number of further values to sum over workers, see `mgpt.training.types.TOTALS`."""
        self.parameters = dict(parameters)
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        device = next(iter(self.parameters.values())).device
        self._flat = torch.zeros(sum(sizes) + totals, dtype=torch.float32, device=device)
        self.gradients, self.totals = self._flat[: sum(sizes)], self._flat[sum(sizes) :]
        for parameter, view in zip(self.parameters.values(), self.gradients.split(sizes), strict=True):
            parameter.grad = view.view_as(parameter)
            if self.world_size > 1:
                dist.broadcast(parameter.data, src=0)

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def align(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Returns this worker's batches of a step.

        Workers may have different ones: nothing synchronises within a step.
        """
        return batches

    def start(self) -> None:
        """Clears gradients and totals before the first backward pass of a step."""
        self._flat.zero_()

    def reduce(self) -> None:
        """Sums gradients and totals over workers."""
        if self.world_size > 1:
            dist.all_reduce(self._flat)

    def normalize_gradients(self, count: Tensor, clip: float | None) -> Tensor:
        """Divides the gradients by `count`, clips their norm to `clip`, and returns the norm before clipping.

        Reads nothing from the device.
        """
        self.gradients.div_(count)
        norm = torch.linalg.vector_norm(self.gradients)
        if clip is not None:
            self.gradients.mul_(torch.clamp(clip / (norm + 1e-6), max=1.0))
        return norm

    def gather(self, value: Any) -> list[Any]:
        """Returns `value` of every worker, in rank order, on every worker."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
