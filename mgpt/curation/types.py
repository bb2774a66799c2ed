"""Types of the curation package."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa

# Counts by training dataset, evaluation dataset and split, and kind of match: "file", "name" or "near-duplicate".
Contamination: TypeAlias = Counter[tuple[str, str, str]]


@dataclass(frozen=True)
class ImagePair:
    """Two near-duplicate images for the data card: thumbnails [32, 32, 3] uint8 of the kept and the removed one.

    `distance`, 0 to 255, is that of their most different points; `reason` the reject reason.
    """

    kept: np.ndarray
    removed: np.ndarray
    distance: float
    reason: str


@dataclass(frozen=True)
class DedupResult:
    """The outcome of the second pass, by unit and row.

    reasons: reject reason, "" for rows that stay. details, splits, sources: of every row. near_duplicates: number of
    near-duplicate pairs of images. pairs: some of them to show. contamination: training records removed because of each
    evaluation set.
    """

    reasons: list[np.ndarray]
    details: list[np.ndarray]
    splits: list[np.ndarray]
    sources: list[pa.ChunkedArray]
    near_duplicates: int
    pairs: list[ImagePair]
    contamination: Contamination
