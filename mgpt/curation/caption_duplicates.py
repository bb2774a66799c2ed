"""Near-duplicate captions: MinHash over word shingles, with datasketch's index."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

_WORD = re.compile(r"\w+")
_PERMUTATIONS = 128
_SHINGLE_WORDS = 3


def shingles(text: str) -> set[bytes]:
    """Returns all runs of three words of the lower-cased text, or the whole text if it is shorter."""
    words = _WORD.findall(text.lower())
    if len(words) < _SHINGLE_WORDS:
        return {" ".join(words).encode()}
    return {" ".join(words[n : n + _SHINGLE_WORDS]).encode() for n in range(len(words) - _SHINGLE_WORDS + 1)}


def find_duplicate_captions(texts: Sequence[str], threshold: float) -> list[int | None]:
    """Returns for each text the position of the first kept text it duplicates, or None.

    Two texts are duplicates when the estimated Jaccard similarity of their shingles is at least `threshold`.
    """
    exact: dict[str, int] = {}
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    sketches: dict[int, MinHash] = {}
    duplicate_of: list[int | None] = []
    for position, text in enumerate(texts):
        normalized = " ".join(_WORD.findall(text.lower()))
        first = exact.get(normalized)
        if first is None:
            sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
            sketch.update_batch(sorted(shingles(text)))
            similar = [other for other in index.query(sketch) if sketches[other].jaccard(sketch) >= threshold]
            first = min(similar, default=None)
            if first is None:
                index.insert(position, sketch)
                sketches[position] = sketch
            exact[normalized] = position if first is None else first
        duplicate_of.append(first)
    return duplicate_of
