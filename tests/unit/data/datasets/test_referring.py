"""Readers of RefCOCO, its evaluation lists, and Visual Genome regions."""

import os
import pickle
from pathlib import Path

import pytest

from mgpt.data.boxes import Box
from mgpt.data.types import Turn

REFERENCE = {
    "ref_id": 41,
    "ann_id": 900100,
    "image_id": 581857,
    "category_id": 1,
    "split": "train",
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "sent_ids": [0, 1],
    "sentences": [
        {"raw": "THE lady, in blue", "sent": "the lady in blue", "sent_id": 0, "tokens": ["the", "lady"]},
        {"raw": "woman", "sent": "woman", "sent_id": 1, "tokens": ["woman"]},
    ],
}
INSTANCES = {
    "info": {},
    "images": [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "height": 48, "width": 64}],
    "annotations": [
        {"id": 900100, "image_id": 581857, "bbox": [10.5, 4, 20, 30.25], "segmentation": [[1, 2]]},
        {"id": 5, "bbox": [0, 0, 1, 1]},
    ],
    "categories": [],
}


def released(dataset, references, protocol: int = 2, name: str = "refs(unc).p") -> None:
    dataset.image("train2014/COCO_train2014_000000581857.jpg")
    dataset.file(name, pickle.dumps(references, protocol=protocol))
    dataset.file("instances.json", INSTANCES)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refcoco(dataset, protocol: int):
    released(dataset, [REFERENCE], protocol)
    (refer,) = dataset.samples("refcoco")
    assert (refer.dataset, refer.split, refer.task, refer.source) == ("refcoco", "train", "refer", "refs(unc).p#41")
    assert refer.boxes == (Box(10.5, 4, 30.5, 34.25),)
    assert refer.turns == (
        Turn("user", "THE lady, in blue", ("THE lady, in blue", "woman")),
        Turn("assistant", "<box:0>"),
    )
    (identify,) = dataset.samples("invrefcoco")
    assert identify.turns == (
        Turn("user", "<box:0>"),
        Turn("assistant", "THE lady, in blue", ("THE lady, in blue", "woman")),
    )
    assert identify.task == "identify"


def test_refcocog(dataset):
    released(dataset, [REFERENCE | {"split": "val"}], name="refs(umd).p")
    (sample,) = dataset.samples("refcocog")
    assert (sample.split, sample.extra) == ("validation", {"key": "41"})


@pytest.mark.parametrize(
    ("reader", "folder", "division"),
    [("refcoco", "refcoco", "unc"), ("invrefcocop", "refcoco+", "unc"), ("refcocog", "refcocog", "umd")],
)
def test_google_division_is_not_read(dataset, reader: str, folder: str, division: str):
    """Its training split has images that the other division tests on."""
    for name, released_as in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        dataset.file(f"{name}/refs({released_as}).p", pickle.dumps([REFERENCE]))
        dataset.file(f"{name}/refs(google).p", pickle.dumps([REFERENCE | {"ref_id": 6}]))
        dataset.file(f"{name}/instances.json", INSTANCES)
    dataset.image("train2014/COCO_train2014_000000581857.jpg")
    assert [sample.source for sample in dataset.samples(reader)] == [f"{folder}/refs({division}).p#41"]


def test_instances_without_id_are_skipped(dataset):
    released(dataset, [REFERENCE])
    damaged = {kind: [{"bbox": [0, 0, 1, 1]}, *INSTANCES[kind]] for kind in ("images", "annotations")}
    dataset.file("instances.json", INSTANCES | damaged)
    assert len(dataset.samples("refcoco")) == 1


def test_refcoco_reject_reasons(dataset):
    broken = [
        REFERENCE | {"ref_id": 1, "ann_id": 77},
        REFERENCE | {"ref_id": 2, "image_id": 12},
        REFERENCE | {"ref_id": 3, "sentences": []},
        {name: value for name, value in REFERENCE.items() if name != "split"} | {"ref_id": 4},
        "no reference",
    ]
    released(dataset, broken)
    assert [reason for _, reason in dataset.reasons("refcoco")] == [
        "missing box",
        "missing image",
        "missing answer",
        "missing field",
        "unreadable record",
    ]


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/pickle-ran-code",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps([Payload()]), b"", b"\x80\x04no pickle", pickle.dumps({"a": 1}), pickle.dumps([REFERENCE])[:-40]],
)
def test_unsafe_or_damaged_pickle(dataset, content: bytes):
    released(dataset, [])
    dataset.file("refs(unc).p", content)
    assert dataset.reasons("refcoco") == [("refs(unc).p", "unreadable file")]
    assert not Path("/tmp/pickle-ran-code").exists()


def test_evaluation_keys(dataset):
    dataset.image("COCO_train2014_000000000042.jpg")
    row = {
        "img_id": "COCO_train2014_000000000042_0",
        "sents": "left dog",
        "bbox": [1, 2, 3, 4],
        "height": 48,
        "width": 64,
    }
    rows = [
        row,
        row | {"sents": "brown dog"},
        row | {"img_id": "COCO_train2014_000000000042_1", "sents": ["cat", "the cat"], "bbox": [5, 5, 10, 10]},
    ]
    dataset.file("refcoco_testA.json", rows)
    dataset.file("refcocog_val.json", rows[:1])
    samples = dataset.samples("refcoco_evaluation")
    assert [sample.extra for sample in samples] == [
        {"key": "COCO_train2014_000000000042_0/0", "reference": "COCO_train2014_000000000042_0"},
        {"key": "COCO_train2014_000000000042_0/1", "reference": "COCO_train2014_000000000042_0"},
        {"key": "COCO_train2014_000000000042_1/0", "reference": "COCO_train2014_000000000042_1"},
        {"key": "COCO_train2014_000000000042_1/1", "reference": "COCO_train2014_000000000042_1"},
    ]
    assert [sample.turns[0].text for sample in samples] == ["left dog", "brown dog", "cat", "the cat"]
    assert {sample.split for sample in samples} == {"testA"}
    assert samples[3].boxes == (Box(5, 5, 15, 15),)
    assert len(dataset.samples("refcocog_evaluation")) == 1


def test_evaluation_reject_reasons(dataset):
    row = {"img_id": "COCO_train2014_000000000042_0", "sents": "left dog", "bbox": [1, 2, 3, 4]}
    dataset.image("COCO_train2014_000000000042.jpg")
    dataset.file(
        "refcoco_val.json",
        [row | {"sents": 5}, row | {"bbox": [1, 2]}, row | {"img_id": "COCO_train2014_000000000043_0"}, 7, row],
    )
    assert [reason for _, reason in dataset.reasons("refcoco_evaluation")] == [
        "missing field",
        "missing box",
        "missing image",
        "missing field",
    ]


def test_visual_genome(dataset, turn_texts):
    dataset.image("VG_100K_2/107.jpg", 400, 300)
    dataset.file(
        "image_data.json",
        [
            {
                "image_id": 107,
                "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/107.jpg",
                "width": 400,
                "height": 300,
            }
        ],
    )
    region = {"region_id": 5, "image_id": 107, "phrase": "A Clock.", "x": 20, "y": 30, "width": 100, "height": 163}
    regions = [
        region,
        region | {"region_id": 6, "width": 128, "height": 128},
        region | {"region_id": 7, "image_id": 8},
        region | {"region_id": 8, "phrase": None},
    ]
    dataset.file("region_descriptions.json", [{"id": 107, "regions": regions}, {"id": 108, "regions": []}])
    sample, *problems = dataset.read("visual_genome")
    assert turn_texts(sample) == [("user", "A Clock."), ("assistant", "<box:0>")]
    assert sample.boxes == (Box(20, 30, 120, 193),)
    assert sample.source == "region_descriptions.json#5"
    assert [problem.reason for problem in problems] == ["not used", "missing image", "missing field"]


def test_damaged_visual_genome_rows(dataset):
    dataset.image("VG_100K/1.jpg", 400, 300)
    dataset.file("image_data.json", [None, {"image_id": 1, "url": "https://a/VG_100K/1.jpg"}])
    region = {"region_id": 5, "image_id": 1, "phrase": "clock", "x": 2, "y": 3, "width": 10, "height": 16}
    dataset.file("region_descriptions.json", [{"id": 2}, 7, {"id": 1, "regions": ["none", region]}])
    assert dataset.reasons("visual_genome") == [
        ("region_descriptions.json#0/0", "missing field"),
        ("region_descriptions.json#1/0", "missing field"),
        ("region_descriptions.json#2/0", "unreadable record"),
    ]
    assert [record.source for record in dataset.read("visual_genome")][-1] == "region_descriptions.json#5"
