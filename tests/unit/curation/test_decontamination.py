"""Decontamination by file, near-duplicate and image name."""

import json
import pickle

import pytest

from mgpt.config.sources import DatasetSettings, SourceSettings
from mgpt.curation.image_aliases import ImageAliases
from mgpt.storage import Store
from tests.fixtures.worlds import card, encoded, own_source, photo, rejected, rows, run, write_own

HELD_OUT, FREE = 139, 776  # images of COCO: RefCOCO tests on the first, nothing tests on the second


def coco(number: int, release: str = "train2014") -> str:
    return f"COCO_{release}_{number:012d}.jpg"


def reference(number: int, split: str) -> dict[str, object]:
    sentence = {"raw": f"the thing of {number}", "sent": "the thing", "sent_id": number, "tokens": ["the", "thing"]}
    names = {
        "ref_id": number,
        "ann_id": number,
        "image_id": number,
        "category_id": 1,
        "sent_ids": [number],
        "file_name": coco(number),
    }
    return names | {"split": split, "sentences": [sentence]}


def conversation(number: int) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"<image>\nwhat of {number}?"},
        {"from": "gpt", "value": f"this and that of {number}"},
    ]
    return {"id": f"{number:012d}", "image": f"{number:012d}.jpg", "conversations": turns}


def question(image: str, number: int) -> dict[str, object]:
    return {
        "image": image,
        "question": f"what of {number}?",
        "question_id": number,
        "answer": ["this"] * 10,
        "dataset": "vqa",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources in which RefCOCO's test split has one image of COCO, and every training split has it and another one.

    The pixels of every file differ, so that only the names can match.
    """
    root = tmp_path_factory.mktemp("sources")
    seeds = iter(range(100))

    def image(path: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(photo(next(seeds), (120, 100))))

    def annotation(path: str, content: object) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(
            pickle.dumps(content, protocol=2) if path.endswith(".p") else json.dumps(content).encode()
        )

    boxes = [
        {"id": number, "image_id": number, "bbox": [5, 5, 40, 30], "category_id": 1} for number in (HELD_OUT, FREE)
    ]
    files = [{"id": number, "file_name": coco(number)} for number in (HELD_OUT, FREE)]
    annotation(
        "refcoco/instances.json", {"images": files, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    )
    annotation("refcoco/refs(unc).p", [reference(HELD_OUT, "testA"), reference(FREE, "train")])
    annotation("llava/conversation_58k.json", [conversation(HELD_OUT), conversation(FREE)])
    # Half of VQAv2's training is on val2014, whose images are evaluation images of others.
    annotation(
        "vqav2/vqa_train.json", [question(f"train2014/{coco(HELD_OUT)}", 1), question(f"train2014/{coco(FREE)}", 2)]
    )
    annotation(
        "coco/coco_karpathy_train.json",
        [{"image": f"train2014/{coco(n)}", "caption": f"an image of {n}"} for n in (HELD_OUT, FREE)],
    )
    data = [
        {"image_id": number, "url": f"https://a/VG_100K/{number}.jpg", "coco_id": known}
        for number, known in ((1, HELD_OUT), (2, None))
    ]
    regions = [
        {"phrase": f"a spot of {number}", "x": 3, "y": 3, "width": 20, "height": 20, "region_id": number}
        for number in (1, 2)
    ]
    annotation("vg/image_data.json", data)
    annotation(
        "vg/region_descriptions.json", [{"id": n, "regions": [regions[n - 1] | {"image_id": n}]} for n in (1, 2)]
    )
    annotation(
        "gqa/train_balanced_questions.json",
        [{"image": f"{n}.jpg", "question": f"what of {n}?", "answer": "a", "question_id": n} for n in (1, 2)],
    )
    for name in ("refcoco", "llava", "vqav2", "coco"):
        image(f"{name}/train2014/{coco(HELD_OUT)}")
        image(f"{name}/train2014/{coco(FREE)}")
    for number in (1, 2):
        image(f"vg/VG_100K/{number}.jpg")
        image(f"gqa/{number}.jpg")
    return root


READERS = {
    "refcoco": "refcoco",
    "llava": "llava_conversation",
    "vqav2": "vqav2",
    "coco": "coco_caption",
    "vg": "visual_genome",
    "gqa": "gqa",
}


def curated(folder, store, **settings):
    datasets = {name: DatasetSettings(reader=reader, root=name, images=name) for name, reader in READERS.items()}
    return run({"all": SourceSettings(locations=(str(folder),), datasets=datasets)}, store, **settings)


def test_image_numbers_match_across_datasets(folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    found = curated(folder, store)
    went = {row["dataset"]: (row["reason"], row["detail"]) for row in rejected(found, store)}
    assert {dataset: reason for dataset, (reason, _) in went.items()} == dict.fromkeys(
        set(READERS) - {"refcoco"}, "evaluation image"
    )
    assert went["vg"][1] == "its image, vg:1 = coco:139, is one of refcoco/testA"
    assert went["gqa"][1] == "its image, vg:1, is one of refcoco/testA", (
        "Visual Genome's number leads to COCO's, and that to RefCOCO"
    )
    kept = rows(found, store)
    assert sorted((row["dataset"], row["split"]) for row in kept) == sorted(
        [*((name, "train") for name in READERS), ("refcoco", "testA")]
    )
    assert found.report["contamination"] == [
        {"training": dataset, "evaluation": "refcoco/testA", "found_by": "name", "records": 1}
        for dataset in sorted(set(READERS) - {"refcoco"})
    ]
    assert "refcoco/testA" in card(found)


def test_decontamination_can_be_disabled(folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    assert rejected(curated(folder, store, decontaminate=False), store) == []


def test_report_counts_each_kind_of_match(tmp_path):
    one, two = photo(1, (120, 100)), photo(2, (120, 100))
    files = {
        "same.jpg": encoded(one),
        "near.jpg": encoded(one, quality=60),
        coco(7): encoded(two),
        f"val/{coco(7, 'val2014')}": encoded(photo(3)),
        "other.jpg": encoded(photo(4)),
    }
    training = [{"image": name, "caption": f"words about {number}"} for number, name in enumerate(files)]
    held_out = [
        {"image": "same.jpg", "caption": "words", "split": "test", "key": "1"},
        {"image": f"val/{coco(7, 'val2014')}", "caption": "more words", "split": "test", "key": "2"},
    ]
    write_own(tmp_path / "own", [*training, *held_out], files)
    store = Store(str(tmp_path / "store"))
    found = run({"own": own_source(tmp_path / "own", duplicates="samples")}, store)
    assert {row["found_by"]: row["records"] for row in found.report["contamination"]} == {
        "file": 2,
        "near-duplicate": 1,
        "name": 1,
    }
    assert [row["source"] for row in rows(found, store) if row["split"] == "train"] == ["train.jsonl#5"]


def test_first_of_questions_with_same_key_stays(tmp_path):
    """The key identifies a prediction, so the second answer would overwrite the first."""
    asked = [
        {"image": "a.jpg", "question": f"what of {number}?", "answer": "this", "key": "7", "split": "test"}
        for number in range(2)
    ]
    trained = [
        {"image": "b.jpg", "question": f"what of {number}?", "answer": "this", "key": "7"} for number in range(2)
    ]
    write_own(tmp_path / "own", [*asked, *trained], {"a.jpg": encoded(photo(1)), "b.jpg": encoded(photo(2))})
    store = Store(str(tmp_path / "store"))
    found = run({"own": own_source(tmp_path / "own")}, store)
    assert [(row["source"], row["reason"], row["detail"]) for row in rejected(found, store)] == [
        ("train.jsonl#2", "duplicate id", "key 7 is that of train.jsonl#1")
    ]


def test_aliases_are_transitive():
    names = ImageAliases(
        [
            (("vg:1", "coco:5"), ""),
            (("flickr:9", "vg:1"), ""),
            (("coco:5",), "refcoco/val"),
            (("coco:6",), ""),
            ((), "text/test"),
        ]
    )
    assert names.held_out(("flickr:9",)) == "refcoco/val"
    assert names.held_out(("vg:2", "vg:1")) == "refcoco/val"
    assert names.held_out(("coco:6",)) == names.held_out(("unseen",)) == names.held_out(()) == ""
