"""Boxes in pixels, on the model's grid, and as text.

A `Box` holds absolute pixels of its image. The model reads and writes a `GridBox`, four integers from 0 to 100, as
`{<x1><y1><x2><y2>}`; the boxes of one phrase are joined by `<delim>` (original code, demo_v2.py:207-222). Coordinates
are truncated as in the original (coco_dataset.py:73), which shifts a box by up to one unit toward the top left; the
released checkpoints expect it.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

GRID = 100
DELIMITER = "<delim>"
GRID_BOX = re.compile(r"\{\s*<\s*(\d{1,9})\s*>\s*<\s*(\d{1,9})\s*>\s*<\s*(\d{1,9})\s*>\s*<\s*(\d{1,9})\s*>\s*\}")
PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
BOX_RUN = re.compile(rf"\s*{GRID_BOX.pattern}(?:\s*(?:<delim>)?\s*{GRID_BOX.pattern})*")


class Box(NamedTuple):
    """A rectangle in absolute pixels: left, top, right, bottom (right and bottom are exclusive)."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """Area in square pixels; 0 for a reversed box."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


class GridBox(NamedTuple):
    """A rectangle on the model's grid: integers from 0 to 100, in percent of the image's width and height."""

    x1: int
    y1: int
    x2: int
    y2: int


class GroundedPhrase(NamedTuple):
    """A phrase of a text and the grid boxes that follow it."""

    phrase: str
    boxes: tuple[GridBox, ...]


def to_grid(box: Box, width: int, height: int) -> GridBox:
    """Converts a box in pixels to grid coordinates (0 to 100), truncating.

    Raises:
        ValueError: the image has no size, or the box is not finite, reversed, or outside the image.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"box {tuple(box)}: its image is {width}x{height} pixels; width and height must be positive")
    if not all(math.isfinite(value) for value in box):
        raise ValueError(f"box {tuple(box)}: every coordinate must be a finite number")
    grid = GridBox(*(int(value / side * GRID) for value, side in zip(box, (width, height, width, height), strict=True)))
    if min(grid) < 0 or max(grid) > GRID or box.x2 < box.x1 or box.y2 < box.y1:
        rule = "give x1 <= x2 <= width and y1 <= y2 <= height in pixels"
        raise ValueError(f"box {tuple(box)} is reversed or lies outside its {width}x{height} image; {rule}")
    return grid


def to_pixels(grid: GridBox, width: int, height: int) -> Box:
    """Converts grid coordinates to pixels such that `to_grid` inverts it (for sides up to 2**40 pixels)."""
    return Box(*(_edge(value, side) for value, side in zip(grid, (width, height, width, height), strict=True)))


def _edge(value: int, side: int) -> float:
    edge = value / GRID * side
    # 0.29 * 500 / 500 * 100 is 28.999..., which truncation would turn into 28: increase the last bit until it does not.
    while int(edge / side * GRID) < value:
        edge = math.nextafter(edge, math.inf)
    return edge


def format_grid(grid: GridBox) -> str:
    """Formats a grid box as `{<x1><y1><x2><y2>}`."""
    return "{" + "".join(f"<{value}>" for value in grid) + "}"


def format_box(box: Box, width: int, height: int) -> str:
    """Formats a pixel box as `{<x1><y1><x2><y2>}`.

    Raises:
        ValueError: see `to_grid`.
    """
    return format_grid(to_grid(box, width, height))


def parse_grid(text: str) -> list[GridBox]:
    """Returns the boxes in a text, in order. Accepts any string.

    Spaces inside a box are allowed; boxes with coordinates above 100 or in the wrong order are skipped.
    """
    found = (GridBox(*map(int, match.groups())) for match in GRID_BOX.finditer(text))
    return [grid for grid in found if is_on_grid(grid)]


def is_on_grid(grid: GridBox) -> bool:
    """Returns true if the box is ordered and within 0..100."""
    return 0 <= grid.x1 <= grid.x2 <= GRID and 0 <= grid.y1 <= grid.y2 <= GRID


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """Returns the boxes in a text, in pixels of a width x height image. Accepts any string."""
    return [to_pixels(grid, width, height) for grid in parse_grid(text)]


def parse_grounded(text: str) -> list[GroundedPhrase]:
    """Returns each `<p>phrase</p>` of a text with the boxes that directly follow it. Accepts any string."""
    grounded = []
    for match in PHRASE.finditer(text):
        run = BOX_RUN.match(text, match.end())
        grounded.append(GroundedPhrase(match.group(1).strip(), tuple(parse_grid(run.group())) if run else ()))
    return grounded


def tokenize_boxes(text: str, width: int, height: int, known: Sequence[Box] = ()) -> tuple[str, list[Box]]:
    """Replaces the boxes in a text by `<box:N>` tokens.

    Returns:
        The text, and all boxes in pixels: those in `known`, then those found.

    Raises:
        ValueError: a box is reversed or has a coordinate above 100.
    """
    boxes = list(known)

    def token(match: re.Match[str]) -> str:
        grid = GridBox(*map(int, match.groups()))
        if not is_on_grid(grid):
            raise ValueError(
                f"{match.group()} is not a box: coordinates go from 0 to {GRID}, left before right, top before bottom"
            )
        boxes.append(to_pixels(grid, width, height))
        return f"<box:{len(boxes) - 1}>"

    return re.sub(r"(<box:\d+>)\s*<delim>\s*(?=<box:)", r"\1", GRID_BOX.sub(token, text)), boxes


def strip_markup(text: str) -> str:
    """Removes boxes and phrase tags from a text and collapses white space."""
    plain = GRID_BOX.sub(" ", text).replace(DELIMITER, " ")
    plain = plain.replace("<p>", "").replace("</p>", "")
    return re.sub(r"\s+([,.;?!])", r"\1", re.sub(r"\s+", " ", plain)).strip()


def iou(first: Box | GridBox, second: Box | GridBox) -> float:
    """Computes intersection over union on continuous coordinates; 0 if both boxes are empty."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box.x2 - box.x1) * (box.y2 - box.y1) for box in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0
