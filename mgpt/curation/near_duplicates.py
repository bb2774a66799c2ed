"""Finds near-duplicate images: re-encoded, resized, or slightly cropped.

A perceptual hash of 8 x 8 brightness values cannot distinguish sparse images (one red circle, one red circle a little
to the left) and fails on a cropped edge. Instead, three steps, each on fewer pairs than the one before:

1. Candidates: all images whose low frequencies (4 x 4 cosine coefficients of each colour) are close (`radius_search`).
2. Tangents: a crop shifts and stretches an image a little, which moves its coefficients along four known directions
   (tangent distance: Simard, LeCun and Denker 1993). The difference orthogonal to them must be small, and the motion
   must be that of a crop.
3. Registration: the thumbnails are aligned (Lucas and Kanade 1981, scale and shift of each axis) and compared point by
   point; one object that differs is enough to distinguish them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mgpt.curation.radius_search import RadiusIndex

SIDE = 32  # of a thumbnail, in pixels
FREQUENCIES = 4
RADIUS = 0.11  # distance of coefficients (of brightness 0..1) that a crop by a twentieth stays below
TANGENT_RESIDUAL = 0.03  # largest distance orthogonal to the tangents
MAX_CROP = 0.14  # of a side; registration of small images is no finer
SLACK = 0.012  # of a side, by which a border may appear to grow
WORST_POINTS = 6  # the sixth largest difference counts: a few points on an edge always differ
MAX_DIFFERENCE = 42.0  # of 255, between registered thumbnails
SAME_DIFFERENCE = 12.0  # of 255, below which two thumbnails need no registration
CHUNK = 1024

Matrix = np.ndarray


class Thumbnails(Protocol):
    """[images, 32, 32, 3] uint8, read some rows at a time: an array or a `ThumbnailStore`."""

    def __getitem__(self, rows: Any) -> Matrix: ...


@dataclass(frozen=True)
class NearDuplicate:
    """Image `second` nearly equals the earlier (or held-out) image `first`; `distance`, of 255, is that of their worst
    points."""

    first: int
    second: int
    distance: float


def find_near_duplicates(thumbnails: Thumbnails, rows: Matrix) -> list[NearDuplicate]:
    """Returns the images that nearly equal an earlier one that is kept.

    Args:
        thumbnails: [images, 32, 32, 3] uint8.
        rows: positions [n] of the images to compare, ascending: of two near-duplicates the first is kept.
    """
    representatives, duplicates = _collapse(thumbnails, rows)
    removed = np.zeros(int(rows.max(initial=-1)) + 1, dtype=bool)
    for found in _pairs(thumbnails, representatives, representatives, removed):
        for pair in sorted(found, key=lambda pair: (pair.second, pair.first)):
            if not removed[pair.first] and not removed[pair.second]:
                removed[pair.second] = True
                duplicates.append(pair)
    return sorted(duplicates, key=lambda pair: pair.second)


def find_matches(thumbnails: Thumbnails, rows: Matrix, against: Matrix) -> list[NearDuplicate]:
    """Returns the images of `rows` [n] that nearly equal one of `against` [m], each with the closest."""
    best: dict[int, NearDuplicate] = {}
    for found in _pairs(thumbnails, rows, against, None):
        for pair in found:
            closest = best.get(pair.second)
            if closest is None or (pair.distance, pair.first) < (closest.distance, closest.first):
                best[pair.second] = pair
    return [best[row] for row in sorted(best)]


def _collapse(thumbnails: Thumbnails, rows: Matrix) -> tuple[Matrix, list[NearDuplicate]]:
    """Keeps one of each set of equal thumbnails and pairs it with the others: ten thousand placeholders are not
    compared pairwise."""
    if not len(rows):
        return rows, []
    _, first, inverse = np.unique(_in_chunks(_digests, thumbnails, rows), return_index=True, return_inverse=True)
    earliest = rows[first[inverse]]
    repeated = earliest != rows
    pairs = zip(earliest[repeated].tolist(), rows[repeated].tolist(), strict=True)
    return rows[~repeated], [NearDuplicate(one, other, 0.0) for one, other in pairs]


def _digests(thumbnails: Matrix) -> Matrix:
    """Returns [n] digests of 16 bytes, in hexadecimal because numpy strips trailing zeros of raw bytes."""
    return np.array([hashlib.sha256(thumbnail.tobytes()).hexdigest()[:32] for thumbnail in thumbnails], dtype="S32")


def _pairs(
    thumbnails: Thumbnails, rows: Matrix, against: Matrix, removed: Matrix | None
) -> Iterator[list[NearDuplicate]]:
    """Yields near-duplicate pairs, a chunk of `rows` at a time. With `removed`, only earlier images not yet in it are
    compared with."""
    if not len(rows) or not len(against):
        return
    index = RadiusIndex(_in_chunks(_coefficients, thumbnails, against))
    for chunk in _chunks(rows):
        yield [
            pair
            for first, second in _candidates(index, thumbnails, chunk, against, removed)
            for pair in _verify(thumbnails, first, second)
        ]


def _chunks(rows: Matrix) -> Iterator[Matrix]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _in_chunks(function: Callable[[Matrix], Matrix], thumbnails: Thumbnails, rows: Matrix) -> Matrix:
    """Applies `function` to the images `rows`, few of which are in memory at a time."""
    return np.concatenate([function(thumbnails[chunk]) for chunk in _chunks(rows)])


def _candidates(
    index: RadiusIndex, thumbnails: Thumbnails, chunk: Matrix, against: Matrix, removed: Matrix | None
) -> Iterator[tuple[Matrix, Matrix]]:
    """Yields candidate pairs (of `against`, of `chunk`), about two chunks at a time, so that few are in memory."""
    waiting: list[tuple[Matrix, Matrix]] = []
    for points, queries in index.within(_coefficients(thumbnails[chunk]), RADIUS):
        first, second = against[points], chunk[queries]
        if removed is not None:
            valid = (first < second) & ~removed[first]
            first, second = first[valid], second[valid]
        waiting.append((first, second))
        if sum(len(found) for found, _ in waiting) >= 2 * CHUNK:
            yield from _rebatch(waiting)
            waiting = []
    yield from _rebatch(waiting)


def _rebatch(pairs: Sequence[tuple[Matrix, Matrix]]) -> Iterator[tuple[Matrix, Matrix]]:
    """Yields the pairs in batches of two chunks; the last may be smaller."""
    if pairs:
        first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
        yield from (
            (first[start : start + 2 * CHUNK], second[start : start + 2 * CHUNK])
            for start in range(0, len(first), 2 * CHUNK)
        )


def _verify(thumbnails: Thumbnails, first: Matrix, second: Matrix) -> list[NearDuplicate]:
    """Returns those of the candidate pairs that pass the tangent test and the registration."""
    close = _passes_tangent_test(thumbnails, first, second)
    first, second = first[close], second[close]
    found = []
    for start in range(0, len(first), 512):
        piece = slice(start, start + 512)
        ones, others = thumbnails[first[piece]], thumbnails[second[piece]]
        distance = _worst_difference(ones.astype(np.float32), others.astype(np.float32))
        apart = distance >= SAME_DIFFERENCE  # the others are aligned as they are
        if apart.any():
            motion, difference = register(ones[apart], others[apart])
            distance[apart] = np.where(_is_crop(motion), difference, np.inf)
        same = distance < MAX_DIFFERENCE
        pairs = zip(first[piece][same], second[piece][same], distance[same], strict=True)
        found += [NearDuplicate(int(one), int(other), float(worst)) for one, other, worst in pairs]
    return found


def _worst_difference(one: Matrix, other: Matrix) -> Matrix:
    """Returns the sixth largest difference [n] of two stacks of images [n, 32, 32, 3]."""
    points = np.abs(other - one).max(-1).reshape(len(one), -1)
    return np.partition(points, -WORST_POINTS, axis=1)[:, -WORST_POINTS]


def _basis() -> Matrix:
    """Returns rows [3 * FREQUENCIES, SIDE]: cosine transforms of the image, of its slope, and of its slope times the
    position."""
    pooled = SIDE // 2
    centres = (np.arange(pooled) + 0.5) / pooled
    cosines = (
        np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * centres)
        * np.where(np.arange(FREQUENCIES) == 0, 1, np.sqrt(2))[:, None]
    )
    cosines /= pooled
    slope = np.gradient(np.eye(pooled), axis=0) * pooled
    pool = np.repeat(np.eye(pooled), 2, axis=1) / 2
    return (
        np.concatenate([cosines, cosines @ slope, cosines @ np.diag(centres) @ slope]).astype(np.float32)
        @ pool.astype(np.float32)
        / 255
    )


_BASIS = _basis()


def _coefficients(thumbnails: Matrix) -> Matrix:
    """Returns the low frequencies of each colour: [n, 32, 32, 3] -> [n, 48]."""
    return _project(_BASIS[:FREQUENCIES], _BASIS[:FREQUENCIES] * 255, thumbnails)


def _project(rows: Matrix, columns: Matrix, thumbnails: Matrix) -> Matrix:
    flat = thumbnails.reshape(len(thumbnails), SIDE, SIDE * 3).astype(np.float32)
    vertical = np.matmul(rows, flat).reshape(len(thumbnails), len(rows), SIDE, 3)
    return np.matmul(columns, vertical).reshape(len(thumbnails), -1)


def _tangents(thumbnails: Matrix) -> Matrix:
    """Returns derivatives of the coefficients by x scale, x shift, y scale, y shift: [n, 32, 32, 3] -> [n, 48, 4]."""
    plain, slope, stretch = (_BASIS[n * FREQUENCIES : (n + 1) * FREQUENCIES] for n in range(3))
    pairs = ((plain, stretch), (plain, slope), (stretch, plain), (slope, plain))
    return np.stack([_project(rows, columns * 255, thumbnails) for rows, columns in pairs], axis=-1)


def _passes_tangent_test(thumbnails: Thumbnails, first: Matrix, second: Matrix) -> Matrix:
    """Returns which pairs differ by little more than a crop, [n] bool."""
    images, positions = np.unique(np.concatenate([first, second]), return_inverse=True)
    coefficients = _in_chunks(_coefficients, thumbnails, images)
    ones, others = positions[: len(first)], positions[len(first) :]
    difference = coefficients[others] - coefficients[ones]
    used, inverse = np.unique(ones, return_inverse=True)
    tangents = _in_chunks(_tangents, thumbnails, images[used])
    solver, spanned = _solvers(tangents)
    inside = np.einsum("nij,ni->nj", spanned[inverse], difference)
    residual = (difference**2).sum(1) - (inside**2).sum(1)
    close = residual < TANGENT_RESIDUAL**2
    motion = np.zeros((len(first), 4), dtype=np.float32)
    motion[close] = np.einsum("nji,ni->nj", solver[inverse[close]], difference[close])
    return close & _is_crop(motion + np.array([1, 0, 1, 0], dtype=np.float32), slack=0.045)


def _solvers(tangents: Matrix) -> tuple[Matrix, Matrix]:
    """Returns the least-squares operator [n, 4, 48] of tangents [n, 48, 4], and an orthonormal basis [n, 48, 4] of
    their span."""
    squares = np.matmul(tangents.transpose(0, 2, 1), tangents) + np.eye(4, dtype=np.float32) * 1e-4
    solver = np.matmul(np.linalg.inv(squares), tangents.transpose(0, 2, 1))
    return solver, np.linalg.qr(tangents)[0]


def _is_crop(motion: Matrix, slack: float = SLACK) -> Matrix:
    """Returns whether one image is a crop of the other, from motion [n, 4]: x scale, x shift, y scale, y shift in
    sides."""
    scale, shift = motion[:, [0, 2]], motion[:, [1, 3]]
    inside = (scale <= 1 + slack) & (shift >= -slack) & (scale + shift <= 1 + slack) & (scale > 1 - MAX_CROP)
    outside = (scale >= 1 - slack) & (shift <= slack) & (scale + shift >= 1 - slack) & (scale < 1 + MAX_CROP)
    return inside.all(1) | outside.all(1)


def _smoothing() -> Matrix:
    kernel = np.zeros((SIDE, SIDE), dtype=np.float32)
    for row in range(SIDE):
        for offset, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            kernel[row, min(max(row + offset, 0), SIDE - 1)] += weight
    return kernel


_SMOOTH = _smoothing()
_POSITIONS = ((np.arange(SIDE) + 0.5) / SIDE).astype(np.float32)


def register(first: Matrix, second: Matrix, steps: int = 4) -> tuple[Matrix, Matrix]:
    """Aligns `first` with `second` (both [n, 32, 32, 3] uint8).

    Returns:
        motion [n, 4] (x scale, x shift, y scale, y shift: `second` at u shows `first` at scale * u + shift, in sides),
        and the sixth largest difference [n] of brightness, 0 to 255.
    """
    one, other = (
        _separable(_SMOOTH, _SMOOTH, first.astype(np.float32)),
        _separable(_SMOOTH, _SMOOTH, second.astype(np.float32)),
    )
    motion = np.tile(np.array([1, 0, 1, 0], dtype=np.float32), (len(one), 1))
    for _ in range(steps):
        motion = motion + _step(_warp(one, motion), other)
    return motion, _worst_difference(_warp(one, motion), other)


def _step(warped: Matrix, target: Matrix) -> Matrix:
    """Returns one Gauss-Newton step [n, 4], clipped to 0.06 of a side."""
    across = np.gradient(warped, axis=2) * SIDE
    down = np.gradient(warped, axis=1) * SIDE
    columns = [across * _POSITIONS[None, None, :, None], across, down * _POSITIONS[None, :, None, None], down]
    slopes = np.stack([column.reshape(len(warped), -1) for column in columns], axis=1)
    squares = np.matmul(slopes, slopes.transpose(0, 2, 1)) + np.eye(4, dtype=np.float32) * 0.01 * SIDE * SIDE
    residual = (target - warped).reshape(len(warped), -1, 1)
    return np.clip(np.linalg.solve(squares, np.matmul(slopes, residual))[..., 0], -0.06, 0.06)


def _warp(images: Matrix, motion: Matrix) -> Matrix:
    return _separable(_sampling(motion[:, 2], motion[:, 3]), _sampling(motion[:, 0], motion[:, 1]), images)


def _sampling(scale: Matrix, shift: Matrix) -> Matrix:
    """Returns matrices of linear interpolation at scale * u + shift: [n], [n] -> [n, 32, 32]."""
    positions = np.clip((_POSITIONS * scale[:, None] + shift[:, None]) * SIDE - 0.5, 0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(positions[:, :, None] - np.arange(SIDE, dtype=np.float32)))


def _separable(rows: Matrix, columns: Matrix, images: Matrix) -> Matrix:
    """Applies `rows` down and `columns` across images [n, 32, 32, 3]."""
    down = np.matmul(rows, images.reshape(len(images), SIDE, SIDE * 3)).reshape(images.shape)
    if columns.ndim == 3:
        columns = columns[:, None]
    return np.matmul(columns, down)
