"""Tails: what a last layer must compute for a loss, each sample of a packed row from its first supervised position to its end.

Letters: L positions of the packed row, n positions of the tails, T a layer's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mgpt.models.language import IGNORE_INDEX


@dataclass(frozen=True)
class Tail:
    """The positions (n,) of a packed row that a last layer computes, their labels (1, n) on the CPU, and attention's arguments: queries of
    the tails, keys of whole samples."""

    places: Tensor
    labels: Tensor
    bounds: dict[str, Any]


def tail_of(labels_1L: Tensor, sizes: Sequence[int], device: torch.device) -> Tail:
    """The tails of a packed row's samples of `sizes` tokens: from the position before a sample's first supervised token to its end, or its
    last position alone. labels: on the CPU, so that nothing is read back from the device.
    """
    places, lengths, start = [], [], 0
    for labels in labels_1L[0].split(list(sizes)):
        supervised = labels.ne(IGNORE_INDEX)
        # A sample's first position has nothing before it that could be asked for it.
        first = max(int(supervised.int().argmax()) - 1, 0) if bool(supervised.any()) else len(labels) - 1
        places.append(torch.arange(start + first, start + len(labels)))
        lengths.append(len(labels) - first)
        start += len(labels)
    rows = torch.cat(places)
    bounds = functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32).to(device, non_blocking=True)
    asked = {"cu_seq_lens_q": bounds, "max_length_q": max(lengths), "query_sizes": tuple(lengths)}
    return Tail(rows.to(device, non_blocking=True), labels_1L[:, rows], asked)


def takes_tails(decoder: nn.Module) -> bool:
    """Whether the decoder's last layer can leave out what comes before the tails; `mgpt.models.fused_llama` makes it so."""
    layers: Any = getattr(decoder, "layers", None)
    return bool(layers) and getattr(layers[-1], "takes_tail", False)
