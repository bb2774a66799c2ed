"""The written world: readable by all readers, reproducible, disjoint splits, and the planted flaws."""

import hashlib
import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgpt.data.boxes import parse_grid
from mgpt.data.datasets import READERS, RejectedRecord
from mgpt.data.synthetic.formats import DATASETS, write_world
from mgpt.data.synthetic.write_captions import FLAW_INTERVAL, JUNK_CAPTIONS
from mgpt.data.tasks import render
from mgpt.data.text_normalization import normalize_sample
from mgpt.data.types import Sample
from tests.fixtures.datasets import PUBLISHED

COUNTS = {"train": 120, "validation": 6, "test": 12}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, 11, COUNTS)
    return root


@pytest.fixture(scope="module")
def records(world: Path) -> dict[str, list[Sample | RejectedRecord]]:
    found = {}
    for name, location in DATASETS.items():
        reader = READERS[name]
        found[name] = list(reader.records(reader.files(str(world / location.root), str(world / location.images))))
    return found


def samples(records, *names: str) -> list[Sample]:
    return [record for name in names or records for record in records[name] if isinstance(record, Sample)]


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_readers_of_all_published_datasets_are_covered():
    """A new reader needs no dataset here; every published dataset and those from Flickr30k Entities have one."""
    entities = {name for name in READERS if name.startswith("flickr30k_entities_")}
    assert len(entities) == 3
    assert set(DATASETS) == PUBLISHED - {"jsonl"} | entities


def test_datasets_give_samples_of_their_tasks(records):
    for name in DATASETS:
        found = samples(records, name)
        assert found, name
        assert {sample.task for sample in found} <= set(READERS[name].card.tasks), name
        assert {sample.dataset for sample in found} == {name}


def test_samples_without_flaws_render(records):
    for name in DATASETS:
        for sample in samples(records, name):
            if not any(box.x2 > sample.images[0].width for box in sample.boxes):
                messages = render(normalize_sample(sample, READERS[name].card.normalized_roles), random.Random(1))
                assert [message["role"] for message in messages] == [turn.role for turn in sample.turns]
                assert not any("<box:" in message["content"] for message in messages)


def test_rejected_records_are_the_planted_ones(records):
    # One in a hundred of VQAv2's training records has no image file.
    reasons = {
        name: Counter(record.reason for record in found if isinstance(record, RejectedRecord))
        for name, found in records.items()
    }
    rejected = {name: counts for name, counts in reasons.items() if counts}
    assert rejected.pop("vqav2") == {"missing image": -(-2 * COUNTS["train"] // FLAW_INTERVAL)}
    for name in ("flickr30k_entities_grounded_caption", "flickr30k_entities_caption_to_phrase"):
        assert set(rejected.pop(name)) == {"not used"}
    for name in ("grit_refer", "grit_identify"):  # scenes where no simple phrase identifies a single thing
        assert set(rejected.pop(name, ())) <= {"missing box"}
    assert rejected == {}


def test_bytes_are_a_function_of_the_seed(world: Path, tmp_path):
    small = {"train": 6, "validation": 1, "test": 1}
    write_world(tmp_path / "a", 3, small)
    write_world(tmp_path / "b", 3, small)
    write_world(tmp_path / "c", 4, small)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    changed = {name for name, value in digest(tmp_path / "a").items() if digest(tmp_path / "c").get(name) != value}
    assert len(changed) > 50


def test_held_out_images_in_training_are_the_planted_ones(records):
    train = {
        sample.images[0].data
        for sample in samples(records)
        if sample.split == "train" and sample.dataset != "laion" and sample.images
    }
    held_out = {sample.images[0].data for sample in samples(records) if sample.split != "train" and sample.images}
    assert not train & held_out
    planted = [sample for sample in samples(records, "laion") if sample.images and sample.images[0].data in held_out]
    assert len(planted) == COUNTS["train"] // FLAW_INTERVAL


def test_pools_share_no_image(records):
    pools = [
        ("laion",),
        ("cc_sbu",),
        ("coco_caption", "refcoco", "vqav2"),
        ("flickr_phrase_to_box",),
        ("grit_grounding",),
        ("gqa",),
        ("cc_sbu_align",),
    ]
    seen = [
        {sample.images[0].data for sample in samples(records, *names) if sample.split == "train" and sample.images}
        for names in pools
    ]
    held_out = {sample.images[0].data for sample in samples(records) if sample.split != "train" and sample.images}
    for number, first in enumerate(seen):
        assert all(not (first - held_out) & second for second in seen[number + 1 :])


def test_web_pairs_have_planted_flaws(records):
    found = samples(records, "laion")
    texts = Counter(sample.turns[1].text for sample in found)
    assert sum(texts[junk] for junk in JUNK_CAPTIONS) == COUNTS["train"] // FLAW_INTERVAL
    assert found[33].images[0].data == found[32].images[0].data
    with pytest.raises(OSError, match="truncated"):
        _decode(found[22].images[0].data)
    outside = [sample for sample in samples(records, "refcoco") if sample.boxes[0].x1 > sample.images[0].width]
    assert len(outside) > 0
    assert {sample.split for sample in outside} == {"train"}


def _decode(data: bytes | None) -> np.ndarray:
    with Image.open(io.BytesIO(data or b"")) as image:
        return np.asarray(image.convert("RGB"))


def test_boxes_contain_the_named_thing(records):
    colours = {
        "red": (214, 40, 40),
        "green": (46, 160, 67),
        "blue": (38, 84, 214),
        "yellow": (240, 208, 32),
        "purple": (140, 60, 180),
        "orange": (240, 130, 30),
    }
    checked = 0
    for sample in samples(records, "refcoco")[:60]:
        colour = next(word for word in sample.turns[0].text.split() if word in colours)
        box = sample.boxes[0]
        if box.x1 < sample.images[0].width:
            x, y = int((box.x1 + box.x2) / 2), int((box.y1 + box.y2) / 2)
            assert np.abs(_decode(sample.images[0].data)[y, x].astype(int) - colours[colour]).max() < 60
            checked += 1
    assert checked > 40


def test_evaluation_lists_match_references(records):
    for name in ("refcoco", "refcocop", "refcocog"):
        evaluated = [sample for sample in samples(records, f"{name}_evaluation") if sample.split != "validation"]
        references = [sample for sample in samples(records, name) if sample.split.startswith("test")]
        assert len(evaluated) == sum(len(sample.turns[0].alternatives) or 1 for sample in references)
        assert len({sample.extra["key"] for sample in evaluated}) == len(evaluated)
        assert {sample.boxes for sample in evaluated} == {sample.boxes for sample in references}


def test_evaluation_captions_have_objects(records):
    tests = [sample for sample in samples(records, "coco_caption") if sample.split == "test"]
    assert len(tests) == COUNTS["test"]
    for sample in tests:
        assert len(sample.references) == 5
        assert all(
            name in sample.references[0] or len(sample.extra["objects"]) == 0
            for name in sample.extra["objects"]
            if "small" not in sample.references[0]
        )


def test_flickr_boxes_round_trip(world: Path, records):
    for sample in samples(records, "flickr_phrase_to_box")[:40]:
        answer = render(sample, random.Random(0))[1]["content"]
        assert len(parse_grid(answer)) == len(sample.boxes)


def test_invalid_counts(tmp_path):
    with pytest.raises(ValueError, match="val: 3, test: -1"):
        write_world(tmp_path, 0, {"train": 3, "val": 3, "test": -1})
