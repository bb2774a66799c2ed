"""What the training loop needs of a model, of parallelism and of callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from mgpt.training.batch import Batch

if TYPE_CHECKING:
    from mgpt.training.trainer import Loop

# What is summed over workers beside the gradients, in this order.
TOTALS = ("loss", "supervised", "samples", "tokens", "positions", "notices")
NOTICES = TOTALS.index("notices")  # of workers that were told that they will be stopped; the others come from batches

StepBatches = tuple[int, Sequence[Batch]]  # a step's number and this worker's batches of it


class Model(Protocol):
    """What the loop needs of a model."""

    def loss_sum(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]: ...

    def load_trainable(self, tensors: dict[str, Tensor]) -> Any: ...


class Parallel(Protocol):
    """How workers share a step; see `mgpt.training.data_parallel`."""

    totals: Tensor

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def align(self, batches: Sequence[Batch]) -> Sequence[Batch]: ...

    def start(self) -> None: ...

    def reduce(self) -> None: ...

    def normalise(self, count: Tensor, clip: float | None) -> Tensor: ...

    def gather(self, value: Any) -> list[Any]: ...


class Callback:
    """Called around the steps. A callback whose future depends on its past keeps that in `state`, as JSON values."""

    def on_start(self, loop: Loop) -> None: ...

    def on_step(self, loop: Loop) -> None: ...

    def on_end(self, loop: Loop) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None: ...
