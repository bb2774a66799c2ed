"""Behaviour shared by all readers: parts, splits, cards."""

import json

import pytest

from mgpt.data.datasets import READERS, RejectedRecord
from mgpt.data.datasets.base import split_name
from mgpt.data.tasks import shipped_tasks
from tests.fixtures.datasets import PUBLISHED


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("vqa_train.json", "train"),
        ("vqa_val.json", "validation"),
        ("instances_val2014.json", "validation"),
        ("refcoco_testA.json", "testA"),
        ("testdev_balanced_questions.json", "testdev"),
        ("train/groundedcaption.json", "train"),
        ("test/groundedcaption.json", "test"),
        ("dev.jsonl", "validation"),
        ("00000.tar", "train"),
        ("conversation_58k.json", "train"),
        ("a/train_set/coco_karpathy_test.json", "test"),
    ],
)
def test_split_name(name: str, split: str):
    assert split_name(name) == split


def test_divided_parts_equal_the_file(dataset):
    dataset.image("a.jpg")
    lines = [
        json.dumps({"image": "a.jpg" if number % 3 else "b.jpg", "caption": f"image {number}"}) for number in range(10)
    ]
    dataset.file("mine.jsonl", "\n".join(lines))
    reader = READERS["jsonl"]
    (part,) = reader.files(str(dataset.root))
    whole = list(reader.records([part]))
    assert sum(isinstance(record, RejectedRecord) for record in whole) == 4
    for count in (1, 3, 4, 10, 99):
        parts = reader.divide(part, count)
        assert len(parts) == -(-10 // count)
        assert [record for piece in parts for record in reader.records([piece])] == whole
        assert list(reader.records(parts)) == whole


def test_damage_in_a_divided_file_is_reported_once(dataset):
    dataset.image("a.jpg")
    row = {"image": "a.jpg", "caption": ["a"], "image_id": "coco_1"}
    dataset.file("coco_karpathy_val.json", json.dumps([row] * 4)[:-1] + ", {")
    reader = READERS["coco_caption"]
    (part,) = reader.files(str(dataset.root))
    for count in (1, 2, 3, 4, 5, 9):
        records = list(reader.records(reader.divide(part, count)))
        assert [getattr(record, "reason", "fine") for record in records] == ["fine"] * 4 + ["unreadable file"]


def test_connection_errors_are_raised(dataset, monkeypatch):
    dataset.image("a.jpg")
    dataset.file("mine.jsonl", json.dumps({"image": "a.jpg", "caption": "x"}))
    monkeypatch.setattr(
        "mgpt.storage.Store.read", lambda store, uri: (_ for _ in ()).throw(ConnectionResetError("reset"))
    )
    with pytest.raises(ConnectionResetError):
        dataset.read("jsonl")


def test_cards_are_complete():
    tasks = set(shipped_tasks())
    for name, reader in READERS.items():
        card = reader.card
        assert card.name == name
        required = {field: getattr(card, field) for field in ("title", "kind", "formats", "size", "licence")}
        assert all(required.values()), (
            f"the card of {name} lacks {[key for key, value in required.items() if not value]}"
        )
        assert set(card.tasks) <= tasks, name
        assert set(card.normalized_roles) <= {"user", "assistant"}
        assert name in ("jsonl", "multitask_conversation") or card.links, f"the card of {name} has no links"
        assert all(link.startswith(("http", "hf://")) for link in (*card.links, *card.mirrors)), name


def test_published_datasets_have_readers():
    assert set(READERS) >= PUBLISHED
