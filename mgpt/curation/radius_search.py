"""Exact search for all points within a radius, by matrix products instead of a tree.

In 48 dimensions a k-d tree visits nearly every point, one at a time; a matrix product visits the same points about
forty times as fast. Points are grouped into small balls of neighbours, and distances are computed, all at once, only
for balls that a query can reach.

Cost: balls out of reach are free, and photographs differ most in a few coefficients (brightness, light from above).
With nothing out of reach, time is quadratic: 2 s of one core for 20,000 images (measured), so about 80 minutes for a
million, and 8 minutes for a million against the images of all evaluation splits, about 100,000 (extrapolated). A point
takes 200 bytes, and results are yielded ball by ball.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BALL = 512  # points per ball: enough for fast products, few enough for small balls
_SLACK = 1e-4  # accuracy of squares summed in float32; pairs within it are recomputed from the differences

Matrix = np.ndarray


class RadiusIndex:
    """Points [n, d] float32, ordered into balls. Coordinates must be of the order of 1, else `_SLACK` is too small."""

    def __init__(self, points: Matrix) -> None:
        self.order = _ball_order(points)
        self.points = points[self.order]
        self.squares = (self.points**2).sum(1)
        self.balls = [slice(start, min(start + BALL, len(points))) for start in range(0, len(points), BALL)]
        self.centres = np.array([self.points[ball].mean(0) for ball in self.balls])
        radii = [
            _lengths(self.points[ball] - centre).max() for ball, centre in zip(self.balls, self.centres, strict=True)
        ]
        self.radii = np.array(radii, dtype=np.float32)

    def within(self, queries: Matrix, radius: float) -> Iterator[tuple[Matrix, Matrix]]:
        """Yields, ball by ball, the pairs (positions of points, positions of queries) at most `radius` apart."""
        squares = (queries**2).sum(1)
        for ball, centre, ball_radius in zip(self.balls, self.centres, self.radii, strict=True):
            near = np.flatnonzero(_lengths(queries - centre) <= radius + ball_radius + _SLACK)
            if len(near):
                points = self.points[ball]
                distances = self.squares[ball] + squares[near, None] - 2 * (queries[near] @ points.T)
                query, point = np.nonzero(distances <= radius**2 + _SLACK)
                exact = ((queries[near[query]].astype(np.float64) - points[point]) ** 2).sum(1) <= radius**2
                yield self.order[ball][point[exact]], near[query[exact]]


def _lengths(vectors: Matrix) -> Matrix:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def _ball_order(points: Matrix) -> Matrix:
    """Returns an order [n] in which every `BALL` neighbours are close: halved repeatedly along the coordinate of
    largest variance."""
    done: list[Matrix] = []
    waiting = [np.arange(len(points))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= BALL:
            done.append(rows)
            continue
        axis = int(points[rows].var(0).argmax())
        middle = BALL * -(-len(rows) // (2 * BALL))  # whole balls on the left
        halves = rows[np.argsort(points[rows, axis], kind="stable")]
        waiting += [halves[middle:], halves[:middle]]
    return np.concatenate(done)
