"""A training checkpoint: parameters, optimizer, schedule, seed, position.

Tensors are safetensors, the rest JSON; no pickle.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mgpt.training.checkpoint_format import TENSORS, read_head, tensor_file, write_head


@dataclass
class TrainingState:
    """The state of a run between two steps.

    Attributes:
        parameters: trainable parameters by name.
        optimizer: its tensors, see `mgpt.training.optimizer.optimizer_state`.
        lr_scheduler: the schedule's settings; it has no other state.
        rng: `{"seed": ...}`; each step seeds its generator from (seed, step, worker).
        position: number of finished steps, which is the next step's number and determines the stream's position.
        callbacks: their states by class name.
    """

    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    lr_scheduler: dict[str, Any]
    rng: dict[str, Any]
    position: int
    callbacks: dict[str, Any] = field(default_factory=dict)

    def on_host(self) -> TrainingState:
        """Returns a copy in host memory, which later steps do not change."""
        copies: dict[str, Any] = {
            part: {name: tensor.detach().to("cpu", copy=True) for name, tensor in getattr(self, part).items()}
            for part in TENSORS
        }
        return replace(self, **copies)

    def save(self, folder: str | Path) -> None:
        """Writes the checkpoint's files into an existing folder."""
        for part in TENSORS:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in getattr(self, part).items()}
            save_file(tensors, tensor_file(folder, part))
        rest = ("lr_scheduler", "rng", "position", "callbacks")
        write_head(folder, {name: getattr(self, name) for name in rest})

    @classmethod
    def load(cls, folder: str | Path) -> TrainingState:
        """Reads and verifies a checkpoint. Raises CorruptCheckpointError when a file is missing or altered."""
        head = read_head(folder)
        parameters, optimizer = (load_file(tensor_file(folder, part)) for part in TENSORS)
        return cls(parameters, optimizer, **head)
