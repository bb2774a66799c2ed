"""`Sample`: ids, rows and validation."""

import dataclasses

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.boxes import Box
from mgpt.data.types import SCHEMA, Sample, SampleImage, Turn

FIELDS = {
    "dataset": "refcoco",
    "split": "train",
    "task": "refer",
    "images": (SampleImage(b"\xff\xd8image", 64, 48),),
    "turns": (Turn("user", "red circle", ("red circle", "the round one")), Turn("assistant", "<box:0>")),
    "boxes": (Box(1, 2, 30.5, 40),),
    "licence": "CC BY 4.0",
    "source": "refs(unc).p#7",
    "extra": {"key": "7", "objects": ["red circle"]},
}


def sample(**changes) -> Sample:
    return Sample.create(**(FIELDS | changes))


def test_row_round_trip():
    rows = [
        sample(),
        sample(images=(), boxes=(), turns=(Turn("user", "größe?"), Turn("assistant", "10")), task="text", extra={}),
    ]
    table = pa.Table.from_pylist([row.to_row() for row in rows], schema=SCHEMA)
    assert [Sample.from_row(row) for row in table.to_pylist()] == rows


def test_rows_of_numpy_arrays():
    table = pa.Table.from_pylist([sample().to_row()], schema=SCHEMA)
    assert Sample.from_row(table.to_pandas().iloc[0].to_dict()) == sample()


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.floats(allow_nan=False, width=32), min_size=4, max_size=4),
)
def test_any_text_and_box_round_trips(text: str, corners: list[float]):
    one = sample(
        turns=(Turn("user", ""), Turn("assistant", text)) if "<box:" not in text else (Turn("user", ""),),
        boxes=(Box(*corners),),
    )
    table = pa.Table.from_pylist([one.to_row()], schema=SCHEMA)
    assert Sample.from_row(table.to_pylist()[0]) == one


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "other"},
        {"task": "identify"},
        {"images": (SampleImage(b"other", 64, 48),)},
        {"images": (SampleImage(b"\xff\xd8image", 64, 48), SampleImage(b"other", 9, 9))},
        {"images": (), "boxes": (), "turns": (Turn("user", "red circle"),)},
        {"boxes": (Box(1, 2, 30, 40),)},
        {"extra": {}},
        {"turns": (Turn("user", "red circle"), Turn("assistant", "<box:0>"))},
    ],
)
def test_id_depends_on_content(change):
    assert sample(**change).id != sample().id


@pytest.mark.parametrize("change", [{"split": "test"}, {"licence": "none"}, {"source": "elsewhere"}])
def test_id_ignores_provenance(change):
    assert sample(**change).id == sample().id


@pytest.mark.parametrize("box_images", [(1,), (0, 0), (-1,)])
def test_box_of_an_image_that_is_not_there(box_images):
    with pytest.raises(ValueError, match=r"1 boxes on images .* the record has 1"):
        sample(box_images=box_images)


def test_revise_updates_the_id():
    assert sample().revise(boxes=(Box(0, 0, 1, 1),)) == sample(boxes=(Box(0, 0, 1, 1),))
    assert sample().revise() == sample()


def test_samples_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample().task = "vqa"  # type: ignore[misc]


def test_references():
    assert sample().references == ("<box:0>",)
    answers = ("2", "2", "two")
    assert sample(turns=(Turn("user", "how many?"), Turn("assistant", "2", answers))).references == answers
    assert sample(turns=(Turn("user", "how many?"),)).references == ()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no turns"),
        ((Turn("system", "x"),), "role .system. is unknown"),
        ((Turn("user", "<box:1>"),), "<box:1> has no box; the record has 1"),
        ((Turn("user", "x", ("fine", "<box:7>")),), "<box:7>"),
        ((Turn("user", "caf\udce9"),), "UTF-16"),
    ],
)
def test_invalid_samples(turns, message: str):
    with pytest.raises(ValueError, match=message):
        sample(turns=turns)
