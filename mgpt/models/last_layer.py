"""Last-layer pruning: a training loss reads the last decoder layer at supervised positions only.

There are two forms of it. `FeedForwardPruning` works on any decoder: attention still runs everywhere, the
feed-forward part only at supervised positions; elsewhere nothing reads it and its gradient is zero. For packed rows
of a fused LLaMA (`mgpt.models.fused_llama`), queries and attention are left out as well: `positions_to_keep` holds,
for each sample, the positions from its first supervised one to its end. transformers' `logits_to_keep` is the same
idea for the head.

Letters in names: B rows, L positions of a row, D width, n positions that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mgpt.models.language import IGNORE_INDEX


def feed_forward(decoder: Any) -> nn.Module | None:
    """Returns the last layer's dense feed-forward part, or None if it has another form (experts, other names)."""
    layers = getattr(decoder, "layers", None)
    part = getattr(layers[-1], "mlp", None) if layers else None
    return part if isinstance(getattr(part, "down_proj", None), nn.Module) else None


class FeedForwardPruning:
    """Hooks around the last feed-forward part: it computes the kept positions, and adds zero at all others."""

    def __init__(self, decoder: Any) -> None:
        self._positions_n: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        part = feed_forward(decoder)
        if part is not None:
            part.register_forward_pre_hook(self._gather)
            part.register_forward_hook(self._scatter)

    @contextmanager
    def only(self, decoder: Any, positions_n: Tensor) -> Iterator[None]:
        """Restricts the part to `positions_n` of the flattened rows, within the block.

        Has no effect with activation checkpointing, which recomputes the layer after the block has ended.
        """
        layers = getattr(decoder, "layers", None)
        recomputed = layers is None or getattr(layers[-1], "gradient_checkpointing", False)
        self._positions_n = None if recomputed else positions_n
        try:
            yield
        finally:
            self._positions_n = None

    def _gather(self, _part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions_n is None:
            return None
        self._shape = inputs[0].shape
        return (inputs[0].flatten(0, 1)[self._positions_n][None], *inputs[1:])

    def _scatter(self, _part: nn.Module, _inputs: tuple[Any, ...], output_1nD: Tensor) -> Tensor | None:
        if self._positions_n is None:
            return None
        rows, length = self._shape[:2]
        flat = output_1nD.new_zeros(rows * length, output_1nD.shape[-1])
        return flat.index_copy(0, self._positions_n, output_1nD[0]).view(rows, length, -1)


@dataclass(frozen=True)
class KeptPositions:
    """The positions of a packed row that the last layer computes.

    Attributes:
        positions: (n,), on the model's device.
        labels: (1, n), on the CPU.
        bounds: arguments of variable-length attention for queries at these positions and keys of whole samples.
    """

    positions: Tensor
    labels: Tensor
    bounds: dict[str, Any]


def positions_to_keep(labels_1L: Tensor, sizes: Sequence[int], device: torch.device) -> KeptPositions:
    """Returns the positions of a packed row, whose samples have `sizes` tokens, that a loss needs.

    They run from the position before a sample's first supervised token to the sample's end; of a sample without one,
    only the last position is kept. labels: on the CPU, so that nothing is read back from the device.
    """
    ranges, lengths, start = [], [], 0
    for labels in labels_1L[0].split(list(sizes)):
        supervised = labels.ne(IGNORE_INDEX)
        # The prediction of a token is read one position earlier; a sample's first position has none before it.
        first = max(int(supervised.int().argmax()) - 1, 0) if bool(supervised.any()) else len(labels) - 1
        ranges.append(torch.arange(start + first, start + len(labels)))
        lengths.append(len(labels) - first)
        start += len(labels)
    positions = torch.cat(ranges)
    bounds = functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32).to(device, non_blocking=True)
    queries = {"cu_seq_lens_q": bounds, "max_length_q": max(lengths), "query_sizes": tuple(lengths)}
    return KeptPositions(positions.to(device, non_blocking=True), labels_1L[:, positions], queries)


def can_prune(decoder: nn.Module) -> bool:
    """Returns whether the decoder's last layer takes `kept` positions; `mgpt.models.fused_llama` makes it so."""
    layers: Any = getattr(decoder, "layers", None)
    return bool(layers) and getattr(layers[-1], "prunes_positions", False)
