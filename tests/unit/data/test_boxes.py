"""Formatting, truncation and parsing of boxes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.boxes import (
    Box,
    GridBox,
    format_box,
    format_grid,
    iou,
    parse_boxes,
    parse_grid,
    parse_grounded,
    strip_markup,
    to_grid,
    to_pixels,
    tokenize_boxes,
)

coordinate = st.integers(0, 100)
grid_boxes = st.builds(
    lambda a, b, c, d: GridBox(min(a, b), min(c, d), max(a, b), max(c, d)),
    coordinate,
    coordinate,
    coordinate,
    coordinate,
)
sides = st.integers(1, 20_000)


def test_box_format():
    assert format_grid(GridBox(0, 7, 45, 100)) == "{<0><7><45><100>}"
    assert format_box(Box(0, 0, 640, 480), 640, 480) == "{<0><0><100><100>}"


def test_truncation():
    # int(x / W * 100): 213/640 is 33.28, 639/640 is 99.84
    assert to_grid(Box(213, 5, 639, 479.9), 640, 480) == (33, 1, 99, 99)
    # 29 % of 500 is 28.999... in floating point, and the original gives 28
    assert to_grid(Box(145, 0, 500, 500), 500, 500).x1 == int(145 / 500 * 100)


@settings(max_examples=300, deadline=None)
@given(grid_boxes)
def test_grid_round_trip(grid: GridBox):
    assert parse_grid(format_grid(grid)) == [grid]


@settings(max_examples=500, deadline=None)
@given(grid_boxes, sides, sides)
def test_pixel_round_trip(grid: GridBox, width: int, height: int):
    written = format_box(to_pixels(grid, width, height), width, height)
    assert written == format_grid(grid)
    assert parse_boxes(written, width, height) == [to_pixels(grid, width, height)]


@settings(max_examples=200, deadline=None)
@given(st.data(), sides, sides)
def test_truncation_costs_at_most_one_unit(data, width: int, height: int):
    x = sorted(data.draw(st.lists(st.floats(0, width), min_size=2, max_size=2)))
    y = sorted(data.draw(st.lists(st.floats(0, height), min_size=2, max_size=2)))
    box = Box(x[0], y[0], x[1], y[1])
    (back,) = parse_boxes(format_box(box, width, height), width, height)
    sides_of_corners = (width, height, width, height)
    # A corner on the grid returns within float64's rounding: 0.85 of 5 pixels is 17 units, 0.8500000000000001 pixels.
    assert all(
        -1e-9 <= (given - found) / side <= 0.01 + 1e-9
        for given, found, side in zip(box, back, sides_of_corners, strict=True)
    )


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="{}<>p/delim0123456789 -"),
        st.from_regex(r"(<p>|</p>|\{<\d+><\d+><\d+><\d+>\}|<delim>| ){0,12}"),
    )
)
def test_parser_accepts_any_string(text: str):
    for grid in parse_grid(text):
        assert 0 <= grid.x1 <= grid.x2 <= 100
        assert 0 <= grid.y1 <= grid.y2 <= 100
    parse_grounded(text)
    strip_markup(text)


def test_invalid_boxes_are_skipped():
    assert parse_grid("{<10><10><101><20>} {<30><10><20><20>} {<1><2><3>} {<1><2><3><4>") == []
    assert parse_grid("it is { < 1 > <2><3> <4> }</s> and {<5><6><7><8>}{<9>}") == [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_long_numbers():
    assert parse_grid("{<" + "9" * 100_000 + "><1><2><3>}") == []


def test_parse_grounded():
    text = (
        "a <p>red circle</p> {<1><2><3><4>}<delim>{<5><6><7><8>} near <p>a wall</p> "
        "and <p>blue square</p>{<0><0><9><9>}"
    )
    assert parse_grounded(text) == [
        ("red circle", ((1, 2, 3, 4), (5, 6, 7, 8))),
        ("a wall", ()),
        ("blue square", ((0, 0, 9, 9),)),
    ]
    assert strip_markup(text) == "a red circle near a wall and blue square"


def test_tokenize_boxes():
    text, boxes = tokenize_boxes("<p>x</p> {<10><20><30><40>}<delim>{<0><0><100><100>}, {<1><1><2><2>}", 200, 100)
    assert text == "<p>x</p> <box:0><box:1>, <box:2>"
    assert boxes[:2] == [Box(20, 20, 60, 40), Box(0, 0, 200, 100)]
    with pytest.raises(ValueError, match="is not a box"):
        tokenize_boxes("{<10><20><130><40>}", 200, 100)


@pytest.mark.parametrize(
    "box", [Box(-7, 0, 5, 5), Box(0, 0, 65, 5), Box(9, 0, 5, 5), Box(0, math.nan, 5, 5), Box(0, 0, math.inf, 5)]
)
def test_box_outside_image(box: Box):
    with pytest.raises(ValueError, match="box"):
        format_box(box, 64, 64)


def test_image_without_size():
    with pytest.raises(ValueError, match="0x64"):
        format_box(Box(0, 0, 1, 1), 0, 64)


def test_iou():
    assert iou(Box(0, 0, 10, 10), Box(0, 0, 10, 10)) == 1
    assert iou(Box(0, 0, 10, 10), Box(5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou(Box(0, 0, 1, 1), Box(2, 2, 3, 3)) == 0
    assert iou(Box(1, 1, 1, 1), Box(1, 1, 1, 1)) == 0
