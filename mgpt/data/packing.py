"""Sequence packing: several samples in one row, with no attention between them.

Rows are planned from lengths alone, before images are decoded. A packed row has `segment_ids`, 1, 2, ... for its
samples and 0 for padding, and positions that restart with each sample. `attention_inputs` converts the segments for an
attention implementation: a dense mask for SDPA and eager attention, a block mask for flex attention, or sequence bounds
for flash attention and `varlen`.

Shape suffixes: P packed rows, L positions of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100
SINGLE_ROWS = ("varlen", "flash_attention_2")  # attention implementations that take one packed row without padding
_ROW_TENSORS = ("input_ids", "labels")


def plan_packs(
    lengths: Sequence[int], images: Sequence[int], token_budget: int, image_budget: int | None = None
) -> list[list[int]]:
    """Assigns samples to rows by first-fit decreasing; deterministic.

    Args:
        lengths: tokens of each sample.
        images: images of each sample.
        token_budget: maximum tokens of a row.
        image_budget: maximum images of a row; None for no limit.

    Returns:
        Rows of sample numbers, each in ascending order; every sample occurs once.

    Raises:
        ValueError: a single sample exceeds a budget.
    """
    limit = sum(images) if image_budget is None else image_budget
    for number, (length, count) in enumerate(zip(lengths, images, strict=True)):
        if length > token_budget or count > limit:
            raise ValueError(
                f"sample {number}: {length} tokens and {count} images do not fit a row of {token_budget} tokens and "
                f"{limit} images; raise the packing budgets or shorten the sample"
            )
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for number in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        size = (lengths[number], images[number])
        row = next((row for row, left in enumerate(room) if size[0] <= left[0] and size[1] <= left[1]), None)
        if row is None:
            row = len(packs)
            packs.append([])
            room.append((token_budget, limit))
        packs[row].append(number)
        room[row] = (room[row][0] - size[0], room[row][1] - size[1])
    return [sorted(pack) for pack in packs]


def pack_rows(
    tensors: Mapping[str, Tensor], images: Sequence[int], packs: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Packs right-padded rows.

    Args:
        tensors: `input_ids`, `attention_mask`, `labels` (batch, length), and `pixel_values` or `image_features`
            (images, ...).
        images: number of images of each row.
        packs: rows of each packed row, see `plan_packs`.

    Returns:
        `input_ids`, `labels`, `segment_ids`, `position_ids` (P, L) and, if there are images, their tensor in the new
        order.
    """
    lengths = tensors["attention_mask"].sum(1).tolist()
    rows = [_one_row(tensors, lengths, pack) for pack in packs]
    width = max(row["input_ids"].shape[0] for row in rows)
    fill = {"labels": IGNORE}
    packed = {
        name: torch.stack(
            [functional.pad(row[name], (0, width - row[name].shape[0]), value=fill.get(name, 0)) for row in rows]
        )
        for name in rows[0]
    }
    starts = [sum(images[:row]) for row in range(len(images))]
    order = [index for pack in packs for row in pack for index in range(starts[row], starts[row] + images[row])]
    return packed | ({image_tensor(tensors): tensors[image_tensor(tensors)][order]} if order else {})


def image_tensor(tensors: Mapping[str, Tensor]) -> str:
    """Returns the name of the images' tensor: `image_features` (from the cache) or `pixel_values`."""
    return "image_features" if "image_features" in tensors else "pixel_values"


def _one_row(tensors: Mapping[str, Tensor], lengths: Sequence[int], pack: Sequence[int]) -> dict[str, Tensor]:
    row = {name: torch.cat([tensors[name][number, : lengths[number]] for number in pack]) for name in _ROW_TENSORS}
    sizes = torch.tensor([lengths[number] for number in pack])
    starts = sizes.cumsum(0) - sizes
    # The token before a sample's first token is another sample's last one, and must not be trained to predict it.
    row["labels"] = row["labels"].index_fill(0, starts, IGNORE)
    row["segment_ids"] = torch.arange(1, len(pack) + 1).repeat_interleave(sizes)
    row["position_ids"] = torch.arange(int(sizes.sum())) - starts.repeat_interleave(sizes)
    return row


def attention_inputs(segment_ids_PL: Tensor, implementation: str, device: torch.device | None = None) -> dict[str, Any]:
    """Returns the arguments of the language model's `forward` that restrict causal attention to each sample.

    Args:
        segment_ids_PL: on the CPU, so that no value is read back from a device.
        implementation: transformers' name (`sdpa`, `eager`, `flex_attention`, `flash_attention_2`), or `varlen` of
            `mgpt.models.attention`. `flash_attention_2` and `varlen` take one row (P = 1) without padding.
        device: device of the result; by default that of the segments.

    Raises:
        ValueError: the implementation is not supported, or does not take these rows.
    """
    device = segment_ids_PL.device if device is None else device
    if implementation in ("sdpa", "eager"):
        return {"attention_mask": dense_mask(segment_ids_PL.to(device, non_blocking=True))}
    if implementation == "flex_attention":
        return {"attention_mask": block_mask(segment_ids_PL.to(device, non_blocking=True))}
    if implementation in SINGLE_ROWS:
        # transformers passes a 4-D mask through unchanged; given None it would search the positions for samples and
        # build one.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device) if implementation == "varlen" else None
        bounds = sequence_bounds(segment_ids_PL, device)
        return {"attention_mask": mask, **bounds} | (sample_sizes(segment_ids_PL) if implementation == "varlen" else {})
    known = "sdpa, eager, flex_attention, varlen or flash_attention_2"
    raise ValueError(f"attn_implementation: {implementation!r} cannot run packed rows; use {known}")


def dense_mask(segment_ids_PL: Tensor) -> Tensor:
    """Returns a boolean mask (P, 1, L, L): query i attends to key j. Padding attends to itself, so no row is empty."""
    same = segment_ids_PL[:, :, None] == segment_ids_PL[:, None, :]
    return same.tril()[:, None]


def block_mask(segment_ids_PL: Tensor) -> Any:
    """Returns the mask of `dense_mask` as a block mask of flex attention, which skips masked blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    def attends(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segment_ids_PL[row, query] == segment_ids_PL[row, key])

    rows, length = segment_ids_PL.shape
    return create_block_mask(attends, rows, None, length, length, device=segment_ids_PL.device)


def sequence_bounds(segment_ids_PL: Tensor, device: torch.device | None = None) -> dict[str, Any]:
    """Returns flash attention's variable-length arguments: cumulative lengths (samples + 1,) int32 on `device`, and the
    length of the longest sample.

    Raises:
        ValueError: there is more than one row, or padding.
    """
    if segment_ids_PL.shape[0] != 1 or bool((segment_ids_PL == 0).any()):
        raise ValueError(
            "varlen, flash_attention_2: a packed batch must be one row without padding; raise pack_tokens, or use sdpa"
        )
    sizes = _counts(segment_ids_PL)
    longest = int(sizes.max())
    bounds = functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32).to(device, non_blocking=True)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def sample_sizes(segment_ids_1L: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the tokens of each sample as Python integers, which need not be read back from a device."""
    sizes = tuple(_counts(segment_ids_1L).tolist())
    return {"query_sizes": sizes, "key_sizes": sizes}


def _counts(segment_ids_1L: Tensor) -> Tensor:
    return torch.unique_consecutive(segment_ids_1L[0], return_counts=True)[1]
