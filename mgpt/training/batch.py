"""Batches: the input of one forward pass, its serialised form, and cutting a global batch into batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mgpt.data.packing import attention_inputs, image_tensor, pack_rows, plan_packs

IGNORE = -100  # label of a position without supervision
_ON_CPU = ("labels", "segment_ids")


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass.

    Attributes:
        tensors: `input_ids`, `attention_mask` and `labels` (batch, length); with images, `pixel_values` (images, 3,
            height, width) or `image_features` (images, image tokens, width). Packed rows have `segment_ids` and
            `position_ids` in place of the attention mask.
        ids: of the samples.
    """

    tensors: dict[str, Tensor]
    ids: tuple[str, ...]

    @classmethod
    def blank(cls) -> Batch:
        """Returns a batch without samples, of two padding positions. Its forward and backward pass add zeros."""
        ids = torch.zeros(1, 2, dtype=torch.long)
        return cls(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full_like(ids, IGNORE)}, ()
        )

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on `device`.

        Labels and segments stay on the CPU: the model derives positions from them there.
        """
        tensors = {
            name: tensor if name in _ON_CPU else tensor.to(device, non_blocking=True)
            for name, tensor in self.tensors.items()
        }
        return Batch(tensors, self.ids)

    def pinned(self) -> Batch:
        """Returns the batch in pinned memory, from which a CUDA device copies asynchronously."""
        tensors = {name: tensor if name in _ON_CPU else tensor.pin_memory() for name, tensor in self.tensors.items()}
        return Batch(tensors, self.ids)

    def sizes(self) -> tuple[int, int, int]:
        """Returns (samples, tokens, positions); a position without a token is padding."""
        filled = self.tensors["segment_ids" if "segment_ids" in self.tensors else "attention_mask"]
        return len(self.ids), int((filled > 0).sum()) if self.ids else 0, filled.numel()

    def inputs(self, implementation: str) -> dict[str, Any]:
        """Returns the model's arguments; `segment_ids` are converted to what the attention implementation takes."""
        if "segment_ids" not in self.tensors:
            return dict(self.tensors)
        rest = {name: tensor for name, tensor in self.tensors.items() if name != "segment_ids"}
        return rest | attention_inputs(self.tensors["segment_ids"], implementation, self.tensors["input_ids"].device)

    def to_bytes(self) -> bytes:
        """Serialises the batch as safetensors, so that the training process only maps the bytes of a collated batch."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return save({**tensors, "ids": torch.tensor(list(json.dumps(self.ids).encode()), dtype=torch.uint8)})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Batch:
        """Reads what `to_bytes` returned."""
        tensors = load(blob)
        return cls(tensors, tuple(json.loads(bytes(tensors.pop("ids").tolist()))))


def cut_by_length(tensors: Mapping[str, Tensor], ids: list[str], images: list[int], size: int) -> list[Batch]:
    """Cuts right-padded rows into batches of at most `size` rows of similar length, each trimmed to its longest row.

    images: number of images of each row. Their `pixel_values` or `image_features` are in row order.
    """
    lengths = tensors["attention_mask"].sum(1)
    order = torch.sort(lengths, stable=True).indices.tolist()
    starts = [sum(images[:row]) for row in range(len(images))]
    return [_take(tensors, ids, order[at : at + size], lengths, starts, images) for at in range(0, len(order), size)]


def _take(
    tensors: Mapping[str, Tensor],
    ids: list[str],
    rows: list[int],
    lengths: Tensor,
    starts: list[int],
    images: list[int],
) -> Batch:
    longest = int(lengths[rows].max())
    taken = {name: tensors[name][rows, :longest].contiguous() for name in ("input_ids", "attention_mask", "labels")}
    chosen = [index for row in rows for index in range(starts[row], starts[row] + images[row])]
    if chosen:
        name = image_tensor(tensors)
        taken[name] = tensors[name][chosen]
    return Batch(taken, tuple(ids[row] for row in rows))


def cut_packed(
    tensors: Mapping[str, Tensor],
    ids: Sequence[str],
    images: Sequence[int],
    size: int,
    token_budget: int,
    single: bool = False,
) -> list[Batch]:
    """Packs samples into rows of at most `token_budget` tokens, and cuts these into batches.

    A batch holds at most `size * longest / token_budget` packed rows, so about as many positions as `size` padded
    rows; with `single`, one row.
    """
    lengths = tensors["attention_mask"].sum(1).tolist()
    packs = plan_packs(lengths, images, token_budget)
    rows = 1 if single else max(1, size * max(lengths) // token_budget)
    return [_packed(tensors, ids, images, packs[at : at + rows]) for at in range(0, len(packs), rows)]


def _packed(
    tensors: Mapping[str, Tensor], ids: Sequence[str], images: Sequence[int], packs: Sequence[Sequence[int]]
) -> Batch:
    return Batch(pack_rows(tensors, images, packs), tuple(ids[row] for pack in packs for row in pack))
