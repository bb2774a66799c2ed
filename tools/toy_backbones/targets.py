"""Dense supervision of the toy backbones: the content of a scene at each position of the image.

`patch_targets` has a position per patch (8 x 8 patches of 8 px in raster order, as the tower's tokens), `cell_targets`
one per cell (4 x 4 cells of 16 px, as the Q-Former's queries). `as_features` converts either to the features of an
ideal readout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgpt.data.synthetic.world import BACKGROUNDS, CANVAS, COLOURS, GRID, SHAPES, SIGN_WORDS, SIZES, Scene, Thing

PATCH = 8
PATCHES = CANVAS // PATCH
BINS = 17  # a coordinate is encoded by the two nearest of 17 bins, 4 px apart
FEATURES = 2 + len(SHAPES) + len(COLOURS) + len(SIZES) + 4 * BINS + 1 + len(SIGN_WORDS) + len(BACKGROUNDS)
IGNORE = -100


@dataclass
class Targets:
    """Class indices (scenes, positions), IGNORE where undefined."""

    owner: np.ndarray  # 1 where a thing's centre lies
    covered: np.ndarray  # 1 where a thing covers the position
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    box: np.ndarray  # (scenes, positions, 4) pixels, valid where covered
    sign: np.ndarray  # 1 where the sign is
    word: np.ndarray
    background: np.ndarray


def _empty(scenes: int, positions: int) -> Targets:
    zeros = lambda: np.zeros((scenes, positions), np.int64)  # noqa: E731
    missing = lambda: np.full((scenes, positions), IGNORE, np.int64)  # noqa: E731
    return Targets(
        zeros(),
        zeros(),
        missing(),
        missing(),
        missing(),
        np.zeros((scenes, positions, 4), np.float32),
        zeros(),
        missing(),
        zeros(),
    )


def _fill(targets: Targets, row: int, position: int, thing: Thing) -> None:
    targets.covered[row, position] = 1
    targets.shape[row, position] = SHAPES.index(thing.shape)
    targets.colour[row, position] = list(COLOURS).index(thing.colour)
    targets.size[row, position] = list(SIZES).index(thing.size)
    targets.box[row, position] = thing.box


def patch_targets(scenes: list[Scene]) -> Targets:
    """Returns for each patch the thing that covers most of it (at least 8 of 64 pixels) or has its centre in it."""
    targets = _empty(len(scenes), PATCHES * PATCHES)
    edges = np.arange(PATCHES) * PATCH
    for row, scene in enumerate(scenes):
        best = np.full(PATCHES * PATCHES, 7.0)
        targets.background[row] = list(BACKGROUNDS).index(scene.background)
        for thing in scene.things:
            overlap = _overlap(thing.box, edges)
            for position in np.flatnonzero(overlap > best):
                best[position] = overlap[position]
                _fill(targets, row, int(position), thing)
        for thing in scene.things:
            centre = int(thing.centre[1] // PATCH) * PATCHES + int(thing.centre[0] // PATCH)
            _fill(targets, row, centre, thing)
            targets.owner[row, centre] = 1
        if scene.sign:
            for position in np.flatnonzero(_overlap(scene.sign.box, edges) > 20):
                targets.sign[row, position], targets.word[row, position] = 1, SIGN_WORDS.index(scene.sign.word)
    return targets


def cell_targets(scenes: list[Scene]) -> Targets:
    """Returns for each cell of the 4 x 4 grid the thing or sign with its centre in it; the larger of two things."""
    targets, side = _empty(len(scenes), GRID * GRID), CANVAS // GRID
    for row, scene in enumerate(scenes):
        targets.background[row] = list(BACKGROUNDS).index(scene.background)
        for thing in sorted(scene.things, key=lambda t: t.box[2] - t.box[0]):
            position = int(thing.centre[1] // side) * GRID + int(thing.centre[0] // side)
            _fill(targets, row, position, thing)
            targets.owner[row, position] = 1
        if scene.sign:
            x, y = (scene.sign.box[0] + scene.sign.box[2]) / 2, (scene.sign.box[1] + scene.sign.box[3]) / 2
            position = int(y // side) * GRID + int(x // side)
            targets.sign[row, position], targets.word[row, position] = 1, SIGN_WORDS.index(scene.sign.word)
    return targets


def spread(coordinates: np.ndarray) -> np.ndarray:
    """Converts pixels (...,) to weights of bins (..., BINS), linear between the two nearest."""
    position = np.clip(coordinates / (CANVAS / (BINS - 1)), 0, BINS - 1)
    return np.clip(1 - np.abs(position[..., None] - np.arange(BINS)), 0, 1).astype(np.float32)


def as_features(targets: Targets) -> np.ndarray:
    """Returns float32 features (scenes, positions, FEATURES); box and classes are zero where nothing is covered."""
    covered = targets.covered[..., None].astype(np.float32)
    one_hot = lambda values, count: (values[..., None] == np.arange(count)).astype(np.float32)  # noqa: E731
    boxes = spread(targets.box).reshape(*targets.owner.shape, -1) * covered
    return np.concatenate(
        [
            targets.owner[..., None],
            covered,
            one_hot(targets.shape, len(SHAPES)),
            one_hot(targets.colour, len(COLOURS)),
            one_hot(targets.size, len(SIZES)),
            boxes,
            targets.sign[..., None],
            one_hot(targets.word, len(SIGN_WORDS)),
            one_hot(targets.background, len(BACKGROUNDS)),
        ],
        axis=-1,
    ).astype(np.float32)


def _overlap(box: tuple[float, float, float, float], edges: np.ndarray) -> np.ndarray:
    """Returns the pixels of the box in every patch, in raster order."""
    across = np.clip(np.minimum(box[2], edges + PATCH) - np.maximum(box[0], edges), 0, None)
    down = np.clip(np.minimum(box[3], edges + PATCH) - np.maximum(box[1], edges), 0, None)
    return (down[:, None] * across[None, :]).reshape(-1)
