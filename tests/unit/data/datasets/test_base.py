"""What every reader keeps: parts that add up, splits, S3 roots, cards."""

import json

import pytest

from mgpt.data.datasets import READERS, RejectedRecord
from mgpt.data.datasets.base import split_name
from mgpt.data.tasks import shipped_tasks


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
def test_splits_by_file_name(name: str, split: str):
    assert split_name(name) == split


def test_parts_of_a_file_add_up_to_the_file(dataset):
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


def test_the_broken_end_of_a_divided_file_is_named_once(dataset):
    dataset.image("a.jpg")
    row = {"image": "a.jpg", "caption": ["a"], "image_id": "coco_1"}
    dataset.file("coco_karpathy_val.json", json.dumps([row] * 4)[:-1] + ", {")
    reader = READERS["coco_caption"]
    (part,) = reader.files(str(dataset.root))
    for count in (1, 2, 3, 4, 5, 9):
        records = list(reader.records(reader.divide(part, count)))
        assert [getattr(record, "reason", "fine") for record in records] == ["fine"] * 4 + ["unreadable file"]


def test_a_server_that_fails_is_no_fault_of_the_record(dataset, monkeypatch):
    dataset.image("a.jpg")
    dataset.file("mine.jsonl", json.dumps({"image": "a.jpg", "caption": "x"}))
    monkeypatch.setattr(
        "mgpt.storage.Store.read", lambda store, uri: (_ for _ in ()).throw(ConnectionResetError("reset"))
    )
    with pytest.raises(ConnectionResetError):
        dataset.read("jsonl")


def test_every_reader_has_a_whole_card():
    tasks = set(shipped_tasks())
    for name, reader in READERS.items():
        card = reader.card
        assert card.name == name
        assert all((card.title, card.kind, card.formats, card.size, card.licence)), name
        assert set(card.tasks) <= tasks, name
        assert set(card.normalized_roles) <= {"user", "assistant"}
        assert name in ("jsonl", "multitask_conversation") or card.links, name
        assert all(link.startswith(("http", "hf://")) for link in (*card.links, *card.mirrors)), name


def test_every_row_of_the_published_stage_table_has_a_reader():
    published = {
        "grit_refer",
        "grit_identify",
        "grit_grounding",
        "laion",
        "cc_sbu",
        "coco_caption",
        "textcaps",
        "refcoco",
        "refcocop",
        "refcocog",
        "visual_genome",
        "invrefcoco",
        "invrefcocop",
        "invrefcocog",
        "gqa",
        "vqav2",
        "ocrvqa",
        "okvqa",
        "aokvqa",
        "llava_conversation",
        "llava_detail",
        "llava_reason",
        "flickr_grounded_caption",
        "flickr_caption_to_phrase",
        "flickr_phrase_to_box",
        "multitask_conversation",
        "unnatural_instructions",
        "cc_sbu_align",
        "vsr",
        "iconvqa",
        "vizwiz",
        "hateful_memes",
        "okvqa_evaluation",
        "refcoco_evaluation",
        "refcocop_evaluation",
        "refcocog_evaluation",
        "jsonl",
    }
    assert published <= set(READERS)
