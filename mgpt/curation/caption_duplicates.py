"""Captions that say nearly the same: MinHash over word shingles, with datasketch's index."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

_WORD = re.compile(r"\w+")
_PERMUTATIONS = 128
_SHINGLE = 3  # words


def shingles(text: str) -> set[bytes]:
    """Runs of three words of a text, lower-cased; the whole text where it is shorter."""
    words = _WORD.findall(text.lower())
    if len(words) < _SHINGLE:
        return {" ".join(words).encode()}
    return {" ".join(words[n : n + _SHINGLE]).encode() for n in range(len(words) - _SHINGLE + 1)}


def repeated_captions(texts: Sequence[str], threshold: float) -> list[int | None]:
    """For every text the position of the first kept text that is like it, or None: estimated Jaccard similarity of shingles of at least
    `threshold`."""
    exact: dict[str, int] = {}
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    sketches: dict[int, MinHash] = {}
    found: list[int | None] = []
    for position, text in enumerate(texts):
        normal = " ".join(_WORD.findall(text.lower()))
        earlier = exact.get(normal)
        if earlier is None:
            sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
            sketch.update_batch(sorted(shingles(text)))
            alike = [other for other in index.query(sketch) if sketches[other].jaccard(sketch) >= threshold]
            earlier = min(alike, default=None)
            if earlier is None:
                index.insert(position, sketch)
                sketches[position] = sketch
            exact[normal] = position if earlier is None else earlier
        found.append(earlier)
    return found
