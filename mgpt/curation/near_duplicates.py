"""Images that are nearly the same: encoded again, resized, or with a little of the border cut off.

A hash of eight by eight brightnesses cannot tell sparse images apart (one red circle here, one red circle a little to the left) and
breaks on a cropped edge. Three steps instead, each on fewer pairs than the one before:

1. Neighbours: all images whose low frequencies (4 x 4 cosine coefficients of each colour) are close (`near.py`).
2. Tangents: cutting a border moves and stretches an image a little, which moves its coefficients along four known directions (tangent
   distance: Simard, LeCun and Denker 1993). What is left of the difference beside those must be small, and the motion must be one that
   cutting a border makes.
3. Registration: the thumbnails are laid on each other (Lucas and Kanade 1981, scale and shift of each axis) and compared point by
   point; a single object that differs is enough to tell them apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mgpt.curation.radius_search import Near

SIDE = 32  # of a thumbnail
FREQUENCIES = 4
RADIUS = 0.11  # distance of coefficients (of brightnesses 0..1) that a cut of a twentieth stays below
TANGENT_REST = 0.03  # what may be left of it beside the tangents
MOST_CUT = 0.14  # of a side; registration of small images is no finer
SLACK = 0.012  # of a side, by which a border may seem to grow
WORST_POINTS = 6  # the sixth largest difference counts: a few points on an edge always differ
MOST_DIFFERENCE = 42.0  # of 255, between registered thumbnails
SAME_DIFFERENCE = 12.0  # of 255, below which two thumbnails need no registration
CHUNK = 1024

Matrix = np.ndarray


class Thumbnails(Protocol):
    """[images, 32, 32, 3] uint8 of which some rows at a time are looked at: an array, or a file (`link.Images`)."""

    def __getitem__(self, rows: Any) -> Matrix: ...


@dataclass(frozen=True)
class Similar:
    """Image `second` nearly equals the earlier (or held-out) image `first`; `distance` of 255 at their worst points."""

    first: int
    second: int
    distance: float


def find_similar(thumbnails: Thumbnails, rows: Matrix) -> list[Similar]:
    """Images that nearly equal an earlier one that stays.

    Args:
        thumbnails: [images, 32, 32, 3] uint8.
        rows: positions [n] of the images to compare, ascending: of two alike the first stays.
    """
    representatives, kept = _collapse(thumbnails, rows)
    gone = np.zeros(int(rows.max(initial=-1)) + 1, dtype=bool)
    for found in _alike(thumbnails, representatives, representatives, gone):
        for pair in sorted(found, key=lambda pair: (pair.second, pair.first)):
            if not gone[pair.first] and not gone[pair.second]:
                gone[pair.second] = True
                kept.append(pair)
    return sorted(kept, key=lambda pair: pair.second)


def find_matches(thumbnails: Thumbnails, rows: Matrix, against: Matrix) -> list[Similar]:
    """Images of `rows` [n] that nearly equal one of `against` [m]: for each the closest."""
    best: dict[int, Similar] = {}
    for found in _alike(thumbnails, rows, against, None):
        for pair in found:
            if pair.second not in best or (pair.distance, pair.first) < (
                best[pair.second].distance,
                best[pair.second].first,
            ):
                best[pair.second] = pair
    return [best[row] for row in sorted(best)]


def _collapse(thumbnails: Thumbnails, rows: Matrix) -> tuple[Matrix, list[Similar]]:
    """One of each set of equal thumbnails, and pairs for the others: ten thousand placeholders must not be compared with each other."""
    if not len(rows):
        return rows, []
    _, first, which = np.unique(_of_all(_digests, thumbnails, rows), return_index=True, return_inverse=True)
    earliest = rows[first[which]]
    again = earliest != rows
    pairs = zip(earliest[again].tolist(), rows[again].tolist(), strict=True)
    return rows[~again], [Similar(one, other, 0.0) for one, other in pairs]


def _digests(thumbnails: Matrix) -> Matrix:
    """[n] of 16 bytes in hexadecimal: numpy takes zeros off the end of raw ones."""
    return np.array([hashlib.sha256(thumbnail.tobytes()).hexdigest()[:32] for thumbnail in thumbnails], dtype="S32")


def _alike(thumbnails: Thumbnails, rows: Matrix, against: Matrix, gone: Matrix | None) -> Iterator[list[Similar]]:
    """Pairs alike, a chunk of `rows` at a time. With `gone`, only earlier images that are not (yet) in it are compared with."""
    if not len(rows) or not len(against):
        return
    near = Near(_of_all(_coefficients, thumbnails, against))
    for part in _chunks(rows):
        yield [
            pair
            for first, second in _neighbours(near, thumbnails, part, against, gone)
            for pair in _judge(thumbnails, first, second)
        ]


def _chunks(rows: Matrix) -> Iterator[Matrix]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _of_all(function: Callable[[Matrix], Matrix], thumbnails: Thumbnails, rows: Matrix) -> Matrix:
    """What `function` makes of the images `rows`, with few of them in memory at a time."""
    return np.concatenate([function(thumbnails[part]) for part in _chunks(rows)])


def _neighbours(
    near: Near, thumbnails: Thumbnails, part: Matrix, against: Matrix, gone: Matrix | None
) -> Iterator[tuple[Matrix, Matrix]]:
    """Pairs to be judged, (of `against`, of `part`), some two chunks at a time: however many there are, few are in memory."""
    waiting: list[tuple[Matrix, Matrix]] = []
    for points, queries in near.within(_coefficients(thumbnails[part]), RADIUS):
        first, second = against[points], part[queries]
        if gone is not None:
            fit = (first < second) & ~gone[first]
            first, second = first[fit], second[fit]
        waiting.append((first, second))
        if sum(len(found) for found, _ in waiting) >= 2 * CHUNK:
            yield from _joined(waiting)
            waiting = []
    yield from _joined(waiting)


def _joined(pairs: Sequence[tuple[Matrix, Matrix]]) -> Iterator[tuple[Matrix, Matrix]]:
    """The pairs in pieces of two chunks; the last may be smaller."""
    if pairs:
        first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
        yield from (
            (first[start : start + 2 * CHUNK], second[start : start + 2 * CHUNK])
            for start in range(0, len(first), 2 * CHUNK)
        )


def _judge(thumbnails: Thumbnails, first: Matrix, second: Matrix) -> list[Similar]:
    close = _tangent_close(thumbnails, first, second)
    first, second = first[close], second[close]
    found = []
    for start in range(0, len(first), 512):
        piece = slice(start, start + 512)
        ones, others = thumbnails[first[piece]], thumbnails[second[piece]]
        distance = _worst(ones.astype(np.float32), others.astype(np.float32))
        apart = distance >= SAME_DIFFERENCE  # the others lie on each other as they are
        if apart.any():
            motion, difference = register(ones[apart], others[apart])
            distance[apart] = np.where(_is_cut(motion), difference, np.inf)
        same = distance < MOST_DIFFERENCE
        pairs = zip(first[piece][same], second[piece][same], distance[same], strict=True)
        found += [Similar(int(one), int(other), float(worst)) for one, other, worst in pairs]
    return found


def _worst(one: Matrix, other: Matrix) -> Matrix:
    """The sixth largest difference [n] of two stacks of images [n, 32, 32, 3]."""
    points = np.abs(other - one).max(-1).reshape(len(one), -1)
    return np.partition(points, -WORST_POINTS, axis=1)[:, -WORST_POINTS]


def _basis() -> Matrix:
    """Rows [3 * FREQUENCIES, SIDE]: cosines, cosines of the slope, cosines of the slope times the position."""
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
    """[n, 32, 32, 3] -> [n, 48]: low frequencies of each colour."""
    return _project(_BASIS[:FREQUENCIES], _BASIS[:FREQUENCIES] * 255, thumbnails)


def _project(rows: Matrix, columns: Matrix, thumbnails: Matrix) -> Matrix:
    flat = thumbnails.reshape(len(thumbnails), SIDE, SIDE * 3).astype(np.float32)
    vertical = np.matmul(rows, flat).reshape(len(thumbnails), len(rows), SIDE, 3)
    return np.matmul(columns, vertical).reshape(len(thumbnails), -1)


def _tangents(thumbnails: Matrix) -> Matrix:
    """[n, 32, 32, 3] -> [n, 48, 4]: how the coefficients move with x scale, x shift, y scale, y shift."""
    plain, slope, stretch = (_BASIS[n * FREQUENCIES : (n + 1) * FREQUENCIES] for n in range(3))
    pairs = ((plain, stretch), (plain, slope), (stretch, plain), (slope, plain))
    return np.stack([_project(rows, columns * 255, thumbnails) for rows, columns in pairs], axis=-1)


def _tangent_close(thumbnails: Thumbnails, first: Matrix, second: Matrix) -> Matrix:
    """Which pairs differ by little more than what cutting a border does, [n] bool."""
    images, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    coefficients = _of_all(_coefficients, thumbnails, images)
    ones, others = places[: len(first)], places[len(first) :]
    difference = coefficients[others] - coefficients[ones]
    used, which = np.unique(ones, return_inverse=True)
    tangents = _of_all(_tangents, thumbnails, images[used])
    solver, spanned = _solvers(tangents)
    inside = np.einsum("nij,ni->nj", spanned[which], difference)
    rest = (difference**2).sum(1) - (inside**2).sum(1)
    close = rest < TANGENT_REST**2
    motion = np.zeros((len(first), 4), dtype=np.float32)
    motion[close] = np.einsum("nji,ni->nj", solver[which[close]], difference[close])
    return close & _is_cut(motion + np.array([1, 0, 1, 0], dtype=np.float32), slack=0.045)


def _solvers(tangents: Matrix) -> tuple[Matrix, Matrix]:
    """Least squares on the tangents [n, 48, 4]: the solution operator [n, 4, 48] and an orthonormal basis [n, 48, 4] of their span."""
    squares = np.matmul(tangents.transpose(0, 2, 1), tangents) + np.eye(4, dtype=np.float32) * 1e-4
    solver = np.matmul(np.linalg.inv(squares), tangents.transpose(0, 2, 1))
    return solver, np.linalg.qr(tangents)[0]


def _is_cut(motion: Matrix, slack: float = SLACK) -> Matrix:
    """Whether one image is the other without a border: motion [n, 4] is x scale, x shift, y scale, y shift in sides of the image."""
    scale, shift = motion[:, [0, 2]], motion[:, [1, 3]]
    inside = (scale <= 1 + slack) & (shift >= -slack) & (scale + shift <= 1 + slack) & (scale > 1 - MOST_CUT)
    outside = (scale >= 1 - slack) & (shift <= slack) & (scale + shift >= 1 - slack) & (scale < 1 + MOST_CUT)
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
    """Lays `first` on `second` (both [n, 32, 32, 3] uint8).

    Returns:
        motion [n, 4] (x scale, x shift, y scale, y shift: `second` at u shows `first` at scale * u + shift, in sides), and the sixth
        largest difference [n] of brightness, 0 to 255.
    """
    one, other = (
        _separable(_SMOOTH, _SMOOTH, first.astype(np.float32)),
        _separable(_SMOOTH, _SMOOTH, second.astype(np.float32)),
    )
    motion = np.tile(np.array([1, 0, 1, 0], dtype=np.float32), (len(one), 1))
    for _ in range(steps):
        motion = motion + _step(_warp(one, motion), other)
    return motion, _worst(_warp(one, motion), other)


def _step(warped: Matrix, target: Matrix) -> Matrix:
    """One Gauss-Newton step [n, 4], at most a sixteenth of a side."""
    across = np.gradient(warped, axis=2) * SIDE
    down = np.gradient(warped, axis=1) * SIDE
    columns = [across * _POSITIONS[None, None, :, None], across, down * _POSITIONS[None, :, None, None], down]
    slopes = np.stack([column.reshape(len(warped), -1) for column in columns], axis=1)
    squares = np.matmul(slopes, slopes.transpose(0, 2, 1)) + np.eye(4, dtype=np.float32) * 0.01 * SIDE * SIDE
    rest = (target - warped).reshape(len(warped), -1, 1)
    return np.clip(np.linalg.solve(squares, np.matmul(slopes, rest))[..., 0], -0.06, 0.06)


def _warp(images: Matrix, motion: Matrix) -> Matrix:
    return _separable(_sampling(motion[:, 2], motion[:, 3]), _sampling(motion[:, 0], motion[:, 1]), images)


def _sampling(scale: Matrix, shift: Matrix) -> Matrix:
    """[n], [n] -> [n, 32, 32]: linear interpolation at scale * u + shift."""
    places = np.clip((_POSITIONS * scale[:, None] + shift[:, None]) * SIDE - 0.5, 0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(places[:, :, None] - np.arange(SIDE, dtype=np.float32)))


def _separable(rows: Matrix, columns: Matrix, images: Matrix) -> Matrix:
    """Applies `rows` down and `columns` across images [n, 32, 32, 3]."""
    down = np.matmul(rows, images.reshape(len(images), SIDE, SIDE * 3)).reshape(images.shape)
    if columns.ndim == 3:
        columns = columns[:, None]
    return np.matmul(columns, down)
