"""Interfaces and constants of training; imports no torch at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mgpt.config.training import TrainingSettings
    from mgpt.training.batch import Batch
    from mgpt.training.checkpoint import TrainingState

# Values summed over workers together with the gradients, in this order. `preemptions` counts workers that will be
# stopped; the others come from batches.
TOTALS = ("loss", "supervised", "samples", "tokens", "positions", "preemptions")
PREEMPTIONS = TOTALS.index("preemptions")

# Dense FLOP/s by precision (float32 as TF32), from NVIDIA's data sheets of the SXM form, by a part of the device's
# name.
_A100 = {"fp32": 156e12, "bf16": 312e12, "fp16": 312e12}
_HOPPER = {"fp32": 495e12, "bf16": 989e12, "fp16": 989e12}
PEAK_FLOPS = {"A100": _A100, "H100": _HOPPER, "H200": _HOPPER}

StepBatches: TypeAlias = "tuple[int, Sequence[Batch]]"  # a step's number and this worker's batches of it


class Model(Protocol):
    """The parts of a model that training uses."""

    def loss_sum(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]: ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]: ...

    def load_trainable(self, tensors: dict[str, Tensor]) -> Any: ...


class Parallel(Protocol):
    """A strategy by which workers share a step; see `mgpt.training.data_parallel`."""

    totals: Tensor

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def align(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Returns this worker's batches of a step, matched to the other workers' where the strategy needs it (FSDP)."""
        ...

    def start(self) -> None: ...

    def reduce(self) -> None: ...

    def normalize_gradients(self, count: Tensor, clip: float | None) -> Tensor: ...

    def gather(self, value: Any) -> list[Any]: ...


class TrainerView(Protocol):
    """The parts of `mgpt.training.trainer.Trainer` that callbacks use; see there for the fields."""

    parallel: Parallel
    settings: TrainingSettings
    device: torch.device
    step: int
    stop: bool
    batches: Sequence[Batch]
    losses: list[Tensor]
    learning_rate: float
    gradient_norm: Tensor | None
    wait_seconds: float

    def state(self) -> TrainingState: ...


class Callback:
    """Hooks around training steps.

    A callback whose future depends on its past keeps that in `state`, as JSON values.
    """

    def on_start(self, trainer: TrainerView) -> None: ...

    def on_step(self, trainer: TrainerView) -> None: ...

    def on_end(self, trainer: TrainerView) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None: ...
