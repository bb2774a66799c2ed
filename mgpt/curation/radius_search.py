"""All points within a distance: exact, with matrix products in place of a tree's walk.

In 48 dimensions a k-d tree looks at nearly every point, one at a time; a product of matrices looks at the same points some forty times
as fast. So points lie in small balls of near neighbours, and only of a ball that a query may reach are the distances computed, all at once.

How it grows: balls out of reach cost nothing, and photographs differ most in a few coefficients (brightness, light from above). Where
nothing is out of reach, time goes with the square: 2 s of one core for 20,000 images (seen), so some 80 minutes for a million, and 8
for a million against the images of all evaluation splits, about 100,000 (extrapolated). A point takes 200 bytes, and what is found is
handed over a ball at a time, however much there is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BALL = 512  # points of a ball: enough for the product to be fast, few enough for balls to be small
_SLACK = 1e-4  # squares summed in float32 are this exact; what lies between is computed again, from the differences

Matrix = np.ndarray


class Near:
    """Points [n, d] float32, ordered into balls. Contract: coordinates are of the order of 1, else `_SLACK` is too small."""

    def __init__(self, points: Matrix) -> None:
        self.order = _ordered(points)
        self.points = points[self.order]
        self.squares = (self.points**2).sum(1)
        self.balls = [slice(start, min(start + BALL, len(points))) for start in range(0, len(points), BALL)]
        self.centres = np.array([self.points[ball].mean(0) for ball in self.balls])
        reach = [
            _lengths(self.points[ball] - centre).max() for ball, centre in zip(self.balls, self.centres, strict=True)
        ]
        self.reach = np.array(reach, dtype=np.float32)

    def within(self, queries: Matrix, radius: float) -> Iterator[tuple[Matrix, Matrix]]:
        """Pairs (position of a point, position of a query) no further apart than `radius`, a ball of points at a time."""
        squares = (queries**2).sum(1)
        for ball, centre, reach in zip(self.balls, self.centres, self.reach, strict=True):
            asking = np.flatnonzero(_lengths(queries - centre) <= radius + reach + _SLACK)
            if len(asking):
                points = self.points[ball]
                apart = self.squares[ball] + squares[asking, None] - 2 * (queries[asking] @ points.T)
                ask, found = np.nonzero(apart <= radius**2 + _SLACK)
                exact = ((queries[asking[ask]].astype(np.float64) - points[found]) ** 2).sum(1) <= radius**2
                yield self.order[ball][found[exact]], asking[ask[exact]]


def _lengths(vectors: Matrix) -> Matrix:
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def _ordered(points: Matrix) -> Matrix:
    """An order [n] in which every `BALL` neighbours are close: halved again and again across the coordinate that varies most."""
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
