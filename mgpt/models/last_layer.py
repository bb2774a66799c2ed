"""The last decoder layer's feed-forward part, computed only where its result is read.

A loss reads the last layer at supervised positions alone. Attention there still needs every position's keys and values, but what follows
it works on each position by itself: at other positions nothing reads it, and its gradient is zero.

Letters: B rows, L positions of a row, D width, n positions that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def feed_forward(decoder: Any) -> nn.Module | None:
    """The last layer's dense feed-forward part; None where it is not such a part (experts, other names)."""
    layers = getattr(decoder, "layers", None)
    part = getattr(layers[-1], "mlp", None) if layers else None
    return part if isinstance(getattr(part, "down_proj", None), nn.Module) else None


class LastLayer:
    """Hooks around that part of a decoder: it sees the kept positions alone, and adds zero to all others."""

    def __init__(self, decoder: Any) -> None:
        self._places_n: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        part = feed_forward(decoder)
        if part is not None:
            part.register_forward_pre_hook(self._gather)
            part.register_forward_hook(self._scatter)

    @contextmanager
    def only(self, decoder: Any, places_n: Tensor) -> Iterator[None]:
        """Within, the part is computed at `places_n`, of the flattened rows. Not where activations are recomputed: that would come after
        this ended."""
        recomputed = (
            getattr(decoder.layers[-1], "gradient_checkpointing", False) if hasattr(decoder, "layers") else True
        )
        self._places_n = None if recomputed else places_n
        try:
            yield
        finally:
            self._places_n = None

    def _gather(self, _part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._places_n is None:
            return None
        self._shape = inputs[0].shape
        return (inputs[0].flatten(0, 1)[self._places_n][None], *inputs[1:])

    def _scatter(self, _part: nn.Module, _inputs: tuple[Any, ...], found_1nD: Tensor) -> Tensor | None:
        if self._places_n is None:
            return None
        rows, length = self._shape[:2]
        flat = found_1nD.new_zeros(rows * length, found_1nD.shape[-1])
        return flat.index_copy(0, self._places_n, found_1nD[0]).view(rows, length, -1)
