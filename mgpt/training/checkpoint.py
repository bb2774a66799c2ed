"""A training checkpoint: trainables, optimiser, schedule, random numbers, position. Tensors as safetensors, the rest as JSON, no pickle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mgpt.training.checkpoint_format import TENSORS, read_head, tensor_file, write_head


@dataclass
class TrainingState:
    """`position` is the number of steps done, which is also the next step's number; the training stream is a pure function of it.

    `rng` is `{"seed": ...}`: each step seeds its random numbers from (seed, step, worker), so nothing else has to be kept.
    """

    trainables: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    schedule: dict[str, Any]
    rng: dict[str, Any]
    position: int
    callbacks: dict[str, Any] = field(default_factory=dict)

    def on_host(self) -> TrainingState:
        """A copy in host memory, which later steps do not touch."""
        return replace(self, trainables=_copied(self.trainables), optimiser=_copied(self.optimiser))

    def save(self, folder: str | Path) -> None:
        """Writes the checkpoint's files into an existing folder."""
        for part in TENSORS:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in getattr(self, part).items()}
            save_file(tensors, tensor_file(folder, part))
        head = {"schedule": self.schedule, "rng": self.rng, "position": self.position, "callbacks": self.callbacks}
        write_head(folder, head)

    @classmethod
    def load(cls, folder: str | Path) -> TrainingState:
        """Reads and verifies. Raises DamagedError when a file is missing or altered."""
        head = read_head(folder)
        trainables, optimiser = (load_file(tensor_file(folder, part)) for part in TENSORS)
        return cls(trainables, optimiser, **head)


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
