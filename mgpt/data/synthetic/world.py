"""Scenes of coloured shapes: their content, their images and their splits.

A scene is a pure function of `(seed, split, index)`. Its split is a hash of its coarse content (kinds, sizes and
cells), so no test scene shares its coarse content with a training scene of any seed or count. The shipped backbones are
trained on the train split by the same rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "validation", "test"]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 208, 32),
    "purple": (140, 60, 180),
    "orange": (240, 130, 30),
}
BACKGROUNDS = {"gray": (128, 128, 128), "black": (18, 18, 22), "white": (236, 236, 232)}
SIZES = {"small": (12, 15), "large": (20, 25)}  # range of the box's side in pixels, inclusive
SIGN_WORDS = ("cat", "dog", "sun", "ant", "hot", "ice", "map", "key")
CANVAS = 64
GRID = 4  # cells per side in the coarse content
SIGN_SHARE = 0.15
SIGN_SIZE = (26, 14)
GLYPHS = {  # 3 x 5 pixel letters, one string a row
    "a": ("010", "101", "111", "101", "101"),
    "c": ("011", "100", "100", "100", "011"),
    "d": ("110", "101", "101", "101", "110"),
    "e": ("111", "100", "110", "100", "111"),
    "g": ("011", "100", "101", "101", "011"),
    "h": ("101", "101", "111", "101", "101"),
    "i": ("111", "010", "010", "010", "111"),
    "k": ("101", "110", "100", "110", "101"),
    "m": ("101", "111", "111", "101", "101"),
    "n": ("110", "101", "101", "101", "101"),
    "o": ("010", "101", "101", "101", "010"),
    "p": ("110", "101", "110", "100", "100"),
    "s": ("011", "100", "010", "001", "110"),
    "t": ("111", "010", "010", "010", "010"),
    "u": ("101", "101", "101", "101", "111"),
    "y": ("101", "101", "010", "010", "010"),
}

PixelBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object. `box` is the exact extent of its drawing, (x1, y1, x2, y2) in pixels."""

    shape: str
    colour: str
    size: str
    box: PixelBox

    @property
    def kind(self) -> str:
        """Colour and shape, as in `red circle`."""
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, (x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Sign:
    """A white plate with a three-letter word."""

    word: str
    box: PixelBox


@dataclass(frozen=True)
class Scene:
    """The content of one image; things are in reading order (by row of the grid, then from the left)."""

    seed: int
    index: int
    split: Split
    canvas: int
    background: str
    things: tuple[Thing, ...]
    sign: Sign | None = None

    @property
    def name(self) -> str:
        """An id that is stable and unique for a seed: `train-000012`."""
        return f"{self.split}-{self.index:06d}"


def coarse_content(scene: Scene) -> tuple[str, ...]:
    """Returns the content that decides the split: kind, size and grid cell of every thing, and the sign's word."""
    cell = scene.canvas / GRID
    things = sorted(f"{t.size} {t.kind} {int(t.centre[0] // cell)},{int(t.centre[1] // cell)}" for t in scene.things)
    return (*things, scene.sign.word if scene.sign else "-")


def split_of(scene: Scene) -> Split:
    """Returns the split of a scene by a hash of its coarse content: 8 of 10 are train, 1 validation, 1 test."""
    digest = hashlib.sha256("|".join(coarse_content(scene)).encode()).digest()
    share = digest[0] % 10
    return "test" if share == 0 else "validation" if share == 1 else "train"


def scenes(split: Split, count: int, seed: int) -> Iterator[Scene]:
    """Yields `count` scenes of a split. The same arguments give the same scenes; a larger count only appends."""
    rng = np.random.default_rng([seed, ("train", "validation", "test").index(split)])
    index = 0
    while index < count:
        scene = _draw_content(rng, seed, split, index)
        if scene.things and split_of(scene) == split:
            yield scene
            index += 1


def draw(scene: Scene) -> Image.Image:
    """Draws the scene as an RGB image, `canvas` pixels square, with pixel noise that is a function of the scene."""
    image = Image.new("RGB", (scene.canvas, scene.canvas), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(pen, thing)
    if scene.sign:
        _draw_sign(pen, scene.sign)
    noise_seed = ("train", "validation", "test").index(scene.split)
    noise = np.random.default_rng([scene.seed, scene.index, noise_seed]).normal(0, 4, (scene.canvas, scene.canvas, 3))
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float32) + noise, 0, 255).astype(np.uint8))


def _draw_content(rng: np.random.Generator, seed: int, split: Split, index: int) -> Scene:
    boxes: list[PixelBox] = []
    sign = None
    if rng.random() < SIGN_SHARE:
        sign = Sign(
            str(rng.choice(SIGN_WORDS)),
            _free_box(rng, boxes, *SIGN_SIZE) or (0.0, 0.0, float(SIGN_SIZE[0]), float(SIGN_SIZE[1])),
        )
        boxes.append(sign.box)
    things = []
    for _ in range(int(rng.integers(1, 4 if sign else 5))):
        size = str(rng.choice(list(SIZES)))
        side = int(rng.integers(SIZES[size][0], SIZES[size][1] + 1))
        box = _free_box(rng, boxes, side, side)
        if box:
            boxes.append(box)
            things.append(Thing(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), size, box))
    scene = Scene(seed, index, split, CANVAS, str(rng.choice(list(BACKGROUNDS))), tuple(things), sign)
    return replace(scene, things=tuple(sorted(things, key=lambda t: (int(t.centre[1] // (CANVAS / GRID)), t.box[0]))))


def _free_box(rng: np.random.Generator, taken: list[PixelBox], width: int, height: int) -> PixelBox | None:
    """Returns a random box at least 1 px from the edge and 2 px from all others, or None after forty tries."""
    for _ in range(40):
        x, y = int(rng.integers(1, CANVAS - width)), int(rng.integers(1, CANVAS - height))
        if all(x + width + 2 <= b[0] or b[2] + 2 <= x or y + height + 2 <= b[1] or b[3] + 2 <= y for b in taken):
            return float(x), float(y), float(x + width), float(y + height)
    return None


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    x1, y1, x2, y2 = (int(v) for v in thing.box)
    x2, y2 = x2 - 1, y2 - 1  # Pillow's corners are inclusive
    colour = COLOURS[thing.colour]
    if thing.shape == "circle":
        pen.ellipse((x1, y1, x2, y2), fill=colour)
    elif thing.shape == "square":
        pen.rectangle((x1, y1, x2, y2), fill=colour)
    elif thing.shape == "triangle":
        pen.polygon([((x1 + x2) // 2, y1), (x2, y2), (x1, y2)], fill=colour)
    else:
        third = (x2 - x1 + 1) // 3
        pen.rectangle((x1 + third, y1, x2 - third, y2), fill=colour)
        pen.rectangle((x1, y1 + third, x2, y2 - third), fill=colour)


def _draw_sign(pen: ImageDraw.ImageDraw, sign: Sign) -> None:
    x, y = int(sign.box[0]), int(sign.box[1])
    pen.rectangle((x, y, int(sign.box[2]) - 1, int(sign.box[3]) - 1), fill=(250, 250, 250), outline=(90, 90, 90))
    for position, letter in enumerate(sign.word):
        for row, bits in enumerate(GLYPHS[letter]):
            for column, bit in enumerate(bits):
                if bit == "1":
                    left, top = x + 3 + 7 * position + 2 * column, y + 2 + 2 * row
                    pen.rectangle((left, top, left + 1, top + 1), fill=(0, 0, 0))
