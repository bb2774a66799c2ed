"""Radius search, compared with brute force."""

import numpy as np
import pytest

from mgpt.curation.radius_search import BALL, RadiusIndex


def clustered(count, seed=4, dimensions=48):
    """Returns points in clusters, some of them equal."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 0.3, (count // 20 + 1, dimensions)) / (1 + np.arange(dimensions))
    points = middles[rng.integers(0, len(middles), count)] + rng.normal(0, 0.01, (count, dimensions))
    points[count // 2 :: 7] = points[0]
    return points.astype(np.float32)


def brute_force(points, queries, radius):
    distances = np.stack([((points.astype(np.float64) - query) ** 2).sum(1) for query in queries])
    return {(int(point), int(query)) for query, point in zip(*np.nonzero(distances <= radius**2), strict=True)}


@pytest.mark.parametrize("count", [1, BALL - 1, BALL, 2 * BALL + 3, 3000])
@pytest.mark.parametrize("radius", [0.0, 0.09, 0.2, 5.0])
def test_pairs_equal_brute_force(count, radius):
    points = clustered(count)
    queries = np.concatenate([points[::13], clustered(50, seed=5)])
    found = [
        pair
        for one, other in RadiusIndex(points).within(queries, radius)
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == brute_force(points, queries, radius)


def test_distant_balls_are_skipped():
    points = np.random.default_rng(1).random((20_000, 2), dtype=np.float32)  # 40 balls of about 0.16 x 0.16
    shards_read = [
        len(list(RadiusIndex(points).within(points[place : place + 1], 0.05))) for place in range(0, 2000, 100)
    ]
    assert np.mean(shards_read) < 6
