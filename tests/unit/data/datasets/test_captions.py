"""Readers of webdataset shards, COCO captions, TextCaps and cc_sbu_align."""

import gzip
import io
import json
import tarfile

import pytest

from mgpt.data.datasets import READERS
from mgpt.data.types import Turn
from tests.fixtures.datasets import shard


def facts(caption: object) -> bytes:
    return json.dumps({"url": "https://x/1.jpg", "caption": caption, "status": "success", "width": 64}).encode()


def test_shard(dataset, turn_texts):
    image = dataset.image("p.jpg")
    dataset.file(
        "00000.tar",
        shard(
            ("000000000.jpg", image),
            ("000000000.json", facts("A dog.")),
            ("000000000.txt", b"A dog."),
            ("000000007.jpg", image),
            ("000000007.txt", b"A cat"),
        ),
    )
    first, second = dataset.samples("laion")
    assert (
        first.dataset,
        first.split,
        first.task,
        first.images[0].data,
        first.images[0].width,
        first.images[0].height,
    ) == (
        "laion",
        "train",
        "caption",
        image,
        64,
        48,
    )
    assert turn_texts(first) == [("user", ""), ("assistant", "A dog.")]
    assert first.source == "00000.tar#000000000"
    assert turn_texts(second)[1] == ("assistant", "A cat")
    assert READERS["laion"].card.normalized_roles == ("assistant",)


def test_shard_reject_reasons(dataset):
    image = dataset.image("p.jpg")
    link = tarfile.TarInfo("000000009.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    data = shard(
        ("1.json", facts("no image")),
        ("2.jpg", image),
        ("3.jpg", image),
        ("3.json", b"{broken"),
        ("4.jpg", image),
        ("4.json", facts(7)),
        ("5.jpg", image),
        ("5.json", facts("  ")),
        ("6.jpg", image),
        ("6.txt", b"\xff\xfe"),
    )
    file = io.BytesIO(data)
    with tarfile.open(fileobj=file, mode="a") as tar:
        tar.addfile(link)
    dataset.file("00000.tar", file.getvalue())
    assert dataset.reasons("cc_sbu") == [
        ("00000.tar#1", "missing image"),
        ("00000.tar#2", "missing answer"),
        ("00000.tar#3", "unreadable record"),
        ("00000.tar#4", "missing field"),
        ("00000.tar#5", "missing answer"),
        ("00000.tar#6", "unreadable record"),
    ]


def test_damaged_shard(dataset):
    image = dataset.image("p.jpg")
    data = shard(
        *[(f"{n}.{end}", content) for n in range(4) for end, content in (("jpg", image), ("txt", b"a caption"))]
    )
    dataset.file("00000.tar", data[: len(data) // 2 - 700])
    records = dataset.read("laion")
    assert [record.source for record in records[:-1]] == [f"00000.tar#{n}" for n in range(len(records) - 1)]
    assert records[-1].reason == "unreadable file"
    dataset.file("00000.tar", b"this is no tar file")
    assert dataset.reasons("laion") == [("00000.tar", "unreadable file")]
    dataset.file("00000.tar", gzip.compress(data))
    assert len(dataset.samples("laion")) == 4
    dataset.file("00000.tar", gzip.compress(data)[:-5])
    assert dataset.reasons("laion") == [("00000.tar", "unreadable file")]


def test_damaged_image_is_kept(dataset):
    dataset.file("00000.tar", shard(("1.jpg", b"no image at all"), ("1.txt", b"a caption")))
    (sample,) = dataset.samples("laion")
    assert (sample.images[0].data, sample.images[0].width, sample.images[0].height) == (b"no image at all", 0, 0)


def test_coco_captions_of_train2014(dataset, turn_texts):
    dataset.image("images/train2014/COCO_train2014_000000000009.jpg", 30, 20)
    rows = [
        {"image": "train2014/COCO_train2014_000000000009.jpg", "caption": "A man.", "image_id": "coco_9"},
        {"image": "val2014/COCO_val2014_000000000042.jpg", "caption": "Restval.", "image_id": "coco_42"},
        {"image": "train2014/COCO_train2014_000000000010.jpg", "caption": "Gone.", "image_id": "coco_10"},
        {"image": "train2014/COCO_train2014_000000000009.jpg", "image_id": "coco_9"},
    ]
    dataset.file("coco_karpathy_train.json", rows)
    sample, *problems = dataset.read("coco_caption")
    assert (sample.split, sample.images[0].width, sample.images[0].height, sample.extra) == ("train", 30, 20, {})
    assert turn_texts(sample) == [("user", ""), ("assistant", "A man.")]
    assert [problem.reason for problem in problems] == ["not used", "missing image", "missing field"]
    assert "COCO_train2014_000000000010.jpg" in problems[1].detail


def test_coco_captions_for_evaluation(dataset):
    dataset.image("val2014/COCO_val2014_000000000042.jpg")
    dataset.file(
        "coco_karpathy_val.json",
        [{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["a", "b", "c"], "image_id": "coco_42"}],
    )
    dataset.file(
        "annotations/instances_val2014.json",
        {
            "info": {"year": 2014},
            "images": [],
            "annotations": [{"id": 1, "image_id": 42, "category_id": 18}, {"id": 2, "image_id": 42, "category_id": 1}],
            "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        },
    )
    (sample,) = dataset.samples("coco_caption")
    assert sample.split == "validation"
    assert sample.turns[1] == Turn("assistant", "a", ("a", "b", "c"))
    assert sample.extra == {"key": "coco_42", "objects": ["dog", "person"]}


@pytest.mark.parametrize("folder", ["", "train_images/"])
def test_textcaps(dataset, turn_texts, folder: str):
    dataset.image(f"{folder}0054c91397f2fe05.jpg")
    row = {
        "image_id": "0054c91397f2fe05",
        "caption_str": "A sign.",
        "reference_strs": ["A sign.", "It says stop."],
        "image_name": "x",
    }
    dataset.file("TextCaps_0.1_train.json", {"dataset_name": "textcaps", "data": [row, row | {"caption_str": None}]})
    dataset.file("TextCaps_0.1_val.json", {"data": [row | {"caption_str": "It says stop."}]})
    train, problem, validation = dataset.read("textcaps")
    assert turn_texts(train) == [("user", ""), ("assistant", "A sign.")]
    assert problem.reason == "missing field"
    assert (validation.split, validation.references) == ("validation", ("It says stop.", "A sign."))


def test_cc_sbu_align(dataset, turn_texts):
    dataset.image("image/2.jpg")
    dataset.file(
        "filter_cap.json",
        {"annotations": [{"image_id": "2", "caption": "The image shows: a Dog!"}, {"image_id": 3, "caption": "x"}]},
    )
    sample, problem = dataset.read("cc_sbu_align")
    assert (sample.task, turn_texts(sample)) == ("describe", [("user", ""), ("assistant", "The image shows: a Dog!")])
    assert (problem.source, problem.reason) == ("filter_cap.json#1", "missing image")
    assert READERS["cc_sbu_align"].card.normalized_roles == ()
