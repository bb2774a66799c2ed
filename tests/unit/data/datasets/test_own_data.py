"""The reader of users' own JSON Lines, on real photographs."""

import json
import random
from importlib.resources import files

import pytest

from mgpt.data.boxes import Box
from mgpt.data.datasets import READERS
from mgpt.data.tasks import render
from mgpt.data.types import Turn

PHOTOGRAPHS = files("sklearn.datasets") / "images"


def write(dataset, *rows) -> None:
    for name in ("china.jpg", "flower.jpg"):
        dataset.file(f"images/{name}", (PHOTOGRAPHS / name).read_bytes())
    dataset.file("mine.jsonl", "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_four_forms(dataset, turn_texts):
    write(
        dataset,
        {"image": "china.jpg", "caption": "A temple behind trees.", "licence": "CC BY 4.0"},
        {
            "image": "images/flower.jpg",
            "caption": ["A dahlia.", "An orange flower."],
            "split": "val",
            "key": "f1",
            "objects": ["flower"],
        },
        {"image": "flower.jpg", "question": "Which colour?", "answer": ["orange", "orange", "red"]},
        {"image": "china.jpg", "expression": "the roof", "box": [100, 50, 400.5, 200]},
        {"image": "china.jpg", "expression": "the roof", "box": [100, 50, 400.5, 200], "task": "identify"},
        {
            "image": "flower.jpg",
            "conversations": [
                {"role": "user", "content": "Where is it?"},
                {"role": "assistant", "content": "At <box:0>."},
            ],
            "boxes": [[1, 2, 3, 4]],
        },
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    )
    caption, several, question, refer, identify, talk, text = dataset.samples("jsonl")
    assert (
        caption.task,
        caption.licence,
        caption.images[0].width,
        caption.images[0].height,
        turn_texts(caption)[1][1],
    ) == (
        "caption",
        "CC BY 4.0",
        640,
        427,
        "A temple behind trees.",
    )
    assert (several.split, several.references, several.extra) == (
        "validation",
        ("A dahlia.", "An orange flower."),
        {"key": "f1", "objects": ["flower"]},
    )
    assert question.turns == (Turn("user", "Which colour?"), Turn("assistant", "orange", ("orange", "orange", "red")))
    assert (refer.task, turn_texts(refer), refer.boxes) == (
        "refer",
        [("user", "the roof"), ("assistant", "<box:0>")],
        (Box(100, 50, 400.5, 200),),
    )
    assert (identify.task, turn_texts(identify)) == ("identify", [("user", "<box:0>"), ("assistant", "the roof")])
    assert (talk.task, turn_texts(talk)[1][1]) == ("instruction", "At <box:0>.")
    assert (text.task, text.images) == ("text", ())
    assert all(render(sample, random.Random(0)) for sample in (caption, several, question, refer, identify, talk, text))


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"image": "china.jpg", "captoin": "x"}, "unreadable record", "unknown key captoin"),
        (
            {"image": "china.jpg"},
            "missing field",
            "exactly one of caption, question, expression, conversations; this one has none",
        ),
        ({"image": "china.jpg", "caption": "x", "question": "y"}, "missing field", "this one has caption, question"),
        ({"image": "gone.jpg", "caption": "x"}, "missing image", "gone.jpg"),
        ({"image": "../../etc/passwd", "caption": "x"}, "path outside the dataset's folder", "leaves"),
        ({"image": "china.jpg", "caption": ""}, "missing answer", "empty"),
        ({"image": "china.jpg", "question": "x"}, "missing field", "'answer'"),
        ({"image": "china.jpg", "expression": "x"}, "missing box", "needs a box"),
        ({"image": "china.jpg", "expression": "x", "box": [1, 2, "3", 4]}, "missing box", "[x1, y1, x2, y2]"),
        (
            {"image": "china.jpg", "conversations": [{"role": "user", "content": "hi"}]},
            "missing answer",
            "add an answer",
        ),
        (
            {"image": "china.jpg", "conversations": [{"role": "assistant", "content": "hi"}]},
            "missing answer",
            "user first",
        ),
        (
            {"image": "china.jpg", "caption": "at <box:0>"},
            "unreadable record",
            "<box:0> has no box",
        ),
        ('{"image": "china.jpg",', "unreadable record", "line 1 is not JSON"),
        ("[1, 2]", "unreadable record", "not list"),
    ],
)
def test_reject_reasons(dataset, row, reason: str, detail: str):
    write(dataset, row)
    (problem,) = dataset.read("jsonl")
    assert (problem.source, problem.reason) == ("mine.jsonl#1", reason)
    assert detail in problem.detail


def test_invalid_utf8_costs_one_line(dataset):
    write(dataset)
    good = json.dumps({"image": "china.jpg", "caption": "fine"}).encode()
    dataset.file("mine.jsonl", b"\xef\xbb\xbf" + good + b'\n{"image": "china.jpg", "caption": "caf\xe9"}\n\n' + good)
    records = dataset.read("jsonl")
    assert [getattr(record, "reason", "fine") for record in records] == ["fine", "unreadable record", "fine"]


def test_items_become_json(dataset, turn_texts):
    items = [{"label": "roof", "box": "<box:0>"}]
    row = {
        "image": "china.jpg",
        "task": "detect-json",
        "boxes": [[0, 0, 9, 9]],
        "conversations": [{"role": "user", "content": "roof"}, {"role": "assistant", "content": items}],
    }
    write(dataset, row)
    (sample,) = dataset.samples("jsonl")
    assert (sample.task, json.loads(turn_texts(sample)[1][1])) == ("detect-json", items)


def test_folder_without_files(dataset):
    dataset.file("notes.txt", "nothing")
    with pytest.raises(ValueError, match=r"jsonl: no \*.jsonl below .* expected: \*.jsonl with image and caption"):
        READERS["jsonl"].files(str(dataset.root))


def test_reader_with_name(dataset):
    write(dataset, {"image": "china.jpg", "caption": "x"})
    reader = READERS["jsonl"].with_name("holiday")
    assert [record.dataset for record in reader.records(reader.files(str(dataset.root)))] == ["holiday"]
    assert READERS["jsonl"].card.name == "jsonl"
