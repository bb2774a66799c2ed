"""What a reader of a scene should know at each place of the image: the dense supervision of the shipped backbones.

`dense_targets` gives it patch by patch (8 x 8 patches of 8 px, raster order: the tower's tokens), `cell_targets` cell by cell (4 x 4 cells
of 16 px: the Q-Former's queries). `as_features` turns either into numbers: what an ideal linear read-out of the tower would hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgpt.data.synthetic.world import BACKGROUNDS, CANVAS, COLOURS, GRID, SHAPES, SIGN_WORDS, SIZES, Scene, Thing

PATCH = 8
PATCHES = CANVAS // PATCH
BINS = 17  # a coordinate is spread over the two nearest of 17 marks, 4 px apart
FEATURES = 2 + len(SHAPES) + len(COLOURS) + len(SIZES) + 4 * BINS + 1 + len(SIGN_WORDS) + len(BACKGROUNDS)
IGNORE = -100


@dataclass
class Targets:
    """Arrays over (scenes, places); class indices, IGNORE where nothing is there to know."""

    owner: np.ndarray  # 1 where a thing's centre lies
    covered: np.ndarray  # 1 where a thing covers the place
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    box: np.ndarray  # (scenes, places, 4) pixels, valid where covered
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


def _fill(targets: Targets, row: int, place: int, thing: Thing) -> None:
    targets.covered[row, place] = 1
    targets.shape[row, place] = SHAPES.index(thing.shape)
    targets.colour[row, place] = list(COLOURS).index(thing.colour)
    targets.size[row, place] = list(SIZES).index(thing.size)
    targets.box[row, place] = thing.box


def patch_targets(scenes: list[Scene]) -> Targets:
    """Per patch: the thing that covers most of it (at least 8 of 64 pixels), and whether a thing's centre lies in it."""
    targets = _empty(len(scenes), PATCHES * PATCHES)
    edges = np.arange(PATCHES) * PATCH
    for row, scene in enumerate(scenes):
        best = np.full(PATCHES * PATCHES, 7.0)
        targets.background[row] = list(BACKGROUNDS).index(scene.background)
        for thing in scene.things:
            overlap = _overlap(thing.box, edges)
            for place in np.flatnonzero(overlap > best):
                best[place] = overlap[place]
                _fill(targets, row, int(place), thing)
        for thing in scene.things:
            centre = int(thing.centre[1] // PATCH) * PATCHES + int(thing.centre[0] // PATCH)
            _fill(targets, row, centre, thing)
            targets.owner[row, centre] = 1
        if scene.sign:
            for place in np.flatnonzero(_overlap(scene.sign.box, edges) > 20):
                targets.sign[row, place], targets.word[row, place] = 1, SIGN_WORDS.index(scene.sign.word)
    return targets


def cell_targets(scenes: list[Scene]) -> Targets:
    """Per cell of the 4 x 4 grid: the thing (or sign) whose centre lies in it; with two, the larger."""
    targets, side = _empty(len(scenes), GRID * GRID), CANVAS // GRID
    for row, scene in enumerate(scenes):
        targets.background[row] = list(BACKGROUNDS).index(scene.background)
        for thing in sorted(scene.things, key=lambda t: t.box[2] - t.box[0]):
            place = int(thing.centre[1] // side) * GRID + int(thing.centre[0] // side)
            _fill(targets, row, place, thing)
            targets.owner[row, place] = 1
        if scene.sign:
            x, y = (scene.sign.box[0] + scene.sign.box[2]) / 2, (scene.sign.box[1] + scene.sign.box[3]) / 2
            place = int(y // side) * GRID + int(x // side)
            targets.sign[row, place], targets.word[row, place] = 1, SIGN_WORDS.index(scene.sign.word)
    return targets


def spread(coordinates: np.ndarray) -> np.ndarray:
    """Pixels (...,) to weights over BINS marks (..., BINS): linear between the two nearest marks."""
    position = np.clip(coordinates / (CANVAS / (BINS - 1)), 0, BINS - 1)
    return np.clip(1 - np.abs(position[..., None] - np.arange(BINS)), 0, 1).astype(np.float32)


def as_features(targets: Targets) -> np.ndarray:
    """(scenes, places, FEATURES) float32; box and classes are zero where nothing is covered."""
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
    """Pixels of the box in every patch, raster order."""
    across = np.clip(np.minimum(box[2], edges + PATCH) - np.maximum(box[0], edges), 0, None)
    down = np.clip(np.minimum(box[3], edges + PATCH) - np.maximum(box[1], edges), 0, None)
    return (down[:, None] * across[None, :]).reshape(-1)
