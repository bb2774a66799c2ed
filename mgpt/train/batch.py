"""What one forward pass sees, and its form on the way from the feeding process to the training process."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

IGNORE = -100  # label of a position without supervision


@dataclass(frozen=True)
class Batch:
    """`tensors` are the model's inputs: `input_ids`, `attention_mask`, `labels` (batch, length) and `pixel_values` (images, 3, height,
    width) if there are images; `ids` are the samples' ids."""

    tensors: dict[str, Tensor]
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`. Labels stay: the model finds the supervised places on the CPU, so that nothing is read back."""
        tensors = {name: tensor if name == "labels" else tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return Batch(tensors, self.ids)

    def sizes(self) -> tuple[int, int, int]:
        """(samples, tokens, positions): a position without a token is padding."""
        mask = self.tensors["attention_mask"]
        return len(self.ids), int(mask.sum()), mask.numel()

    def to_bytes(self) -> bytes:
        """One safetensors blob: the feeding process pays for collation, the training process only maps the bytes."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return save(tensors, metadata=None) if not self.ids else save({**tensors, "ids": _text(json.dumps(self.ids))})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Batch:
        """What `to_bytes` made."""
        tensors = load(blob)
        ids = tensors.pop("ids", None)
        return cls(tensors, () if ids is None else tuple(json.loads(bytes(ids.tolist()))))


def _text(value: str) -> Tensor:
    return torch.tensor(list(value.encode()), dtype=torch.uint8)


def cut_by_length(tensors: Mapping[str, Tensor], ids: list[str], images: list[int], size: int) -> list[Batch]:
    """Cuts right-padded rows into batches of at most `size` rows of like length, each trimmed to its own longest row.

    `images[i]` is the number of images of row i; their pixels lie in `pixel_values` in row order.
    """
    lengths = tensors["attention_mask"].sum(1)
    order = torch.sort(lengths, stable=True).indices.tolist()
    starts = [sum(images[:row]) for row in range(len(images))]
    return [_take(tensors, ids, order[at:at + size], lengths, starts, images) for at in range(0, len(order), size)]


def _take(tensors: Mapping[str, Tensor], ids: list[str], rows: list[int], lengths: Tensor, starts: list[int], images: list[int]) -> Batch:
    longest = int(lengths[rows].max())
    taken = {name: tensors[name][rows, :longest].contiguous() for name in ("input_ids", "attention_mask", "labels")}
    pixels = [index for row in rows for index in range(starts[row], starts[row] + images[row])]
    if pixels:
        taken["pixel_values"] = tensors["pixel_values"][pixels]
    return Batch(taken, tuple(ids[row] for row in rows))
