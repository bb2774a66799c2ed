"""A training checkpoint as a folder: trainables, optimiser, schedule, random numbers, position. Tensors as safetensors, the rest as JSON,
no pickle.

Contract: `state.json` names the sha256 of each tensor file, and is written last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mgpt.storage import sha256_file

_TENSORS = ("trainables", "optimiser")


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

    def save(self, folder: str | Path) -> None:
        """Writes the checkpoint's files into an existing folder."""
        folder = Path(folder)
        for part in _TENSORS:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in getattr(self, part).items()}
            save_file(tensors, folder / f"{part}.safetensors")
        head = {
            "schedule": self.schedule,
            "rng": self.rng,
            "position": self.position,
            "callbacks": self.callbacks,
            "sha256": {part: sha256_file(folder / f"{part}.safetensors") for part in _TENSORS},
        }
        (folder / "state.json").write_text(json.dumps(head))

    @classmethod
    def load(cls, folder: str | Path) -> TrainingState:
        """Reads and verifies. Raises ValueError when a file is missing or altered."""
        folder = Path(folder)
        try:
            head = json.loads((folder / "state.json").read_text())
            found = {part: sha256_file(folder / f"{part}.safetensors") for part in _TENSORS}
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {folder}: incomplete ({error}); delete it so that the run goes on from the one before") from error
        for part, digest in head.pop("sha256").items():
            if found[part] != digest:
                what = f"{part}.safetensors was altered (sha256 {found[part]}, expected {digest})"
                raise ValueError(f"checkpoint {folder}: {what}; delete the checkpoint so that the run goes on from the one before")
        trainables, optimiser = (load_file(folder / f"{part}.safetensors") for part in _TENSORS)
        return cls(trainables, optimiser, **head)
