"""Curation stage: counts, splits, duplicates, and equal bytes after interruptions and with any number of workers."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mgpt.config.sources import DatasetSettings, DownloadSettings, SourceSettings
from mgpt.curation.stage import NoSamplesError
from mgpt.download import download
from mgpt.storage import Store
from tests.fixtures.worlds import card, encoded, own_source, photo, rejected, rows, run, write_own

WORLD = SourceSettings(
    kind="scenes",
    seed=3,
    counts={"train": 120, "validation": 12, "test": 30},
    datasets={
        name: DatasetSettings(reader=name)
        for name in ("laion", "coco_caption", "refcoco", "vqav2", "llava_detail", "unnatural_instructions")
    },
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with a small downloaded world; each test curates it into its own folder."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    download({"world": WORLD}, DownloadSettings(), store, lambda line: None)
    return store


@pytest.fixture(scope="module")
def expected(world):
    """The curation without interruptions."""
    return run({"world": WORLD}, world, "uninterrupted")


def digests(store, folder):
    prefix = store.uri(folder)
    return {uri.removeprefix(prefix): hashlib.sha256(store.read(uri)).hexdigest() for uri in store.list(prefix)}


def test_every_record_is_kept_or_quarantined(expected, world):
    kept, went = rows(expected, world), rejected(expected, world)
    assert len(kept) + len(went) == expected.report["records"]
    assert len(kept) == expected.report["kept"] == sum(entry.meta["rows"] for entry in expected.manifest.entries)
    counted = sum(
        row["kept"] + row["quarantined"] for splits in expected.report["datasets"].values() for row in splits.values()
    )
    assert counted == expected.report["records"]
    assert all(row["reason"] and row["dataset"] and row["source"] for row in went)
    for entry in expected.manifest.entries:
        assert entry.name.startswith(f"{entry.meta['dataset']}/{entry.meta['split']}/")
    expected.manifest.verify()


def test_planted_evaluation_images_are_dropped(expected, world):
    from mgpt.config.sources import CurateSettings
    from mgpt.curation.image_checks import check_image
    from mgpt.curation.near_duplicates import find_matches

    assert expected.report["datasets"]["laion"]["train"]["reasons"]["evaluation image"] >= 1
    kept = [row for row in rows(expected, world) if row["image"]]
    images = {
        split: list({row["image"] for row in kept if (row["split"] == "train") == (split == "train")})
        for split in ("train", "held out")
    }
    assert not set(images["train"]) & set(images["held out"])
    prints = [
        np.frombuffer(check_image(data, CurateSettings()).thumbnail, np.uint8).reshape(32, 32, 3)
        for data in [*images["train"], *images["held out"]]
    ]
    count = len(images["train"])
    assert find_matches(np.stack(prints), np.arange(count), np.arange(count, len(prints))) == []


def test_ray_workers_give_same_bytes(expected, world, ray_here):
    found = run({"world": WORLD}, world, "ray", workers=2)
    assert found.manifest.digest == expected.manifest.digest
    assert digests(world, "ray") == digests(world, "uninterrupted")
    assert card(found) == card(expected)


SCRIPT = """
    import json, sys
    from mgpt.curation import curate
    from mgpt.config.sources import CurateSettings, SourceSettings
    from mgpt.storage import Manifest, Store
    manifest, source, root, folder = sys.argv[1:]
    store = Store(root)
    print("ready", flush=True)
    settings = CurateSettings(workers=0)
    curate(Manifest.load(manifest), {"world": SourceSettings(**json.loads(source))}, settings, store, store.uri(folder))
"""


def test_killed_runs_give_same_bytes(expected, world, tmp_path):
    manifest = download({"world": WORLD}, DownloadSettings(), world, lambda line: None).manifest
    manifest.save(tmp_path / "manifest.json")
    arguments = [str(tmp_path / "manifest.json"), WORLD.model_dump_json(), world.root, "killed"]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    delays, killed = random.Random(2), 0
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delays.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        killed += process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert killed > 0
    assert digests(world, "killed") == digests(world, "uninterrupted")


def test_own_photographs_need_only_a_source_entry(tmp_path):
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    records = [
        {"image": "china.jpg", "caption": "a temple roof before a cloudy sky"},
        {
            "image": "flower.jpg",
            "conversations": [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a flower"}],
        },
    ]
    write_own(
        tmp_path / "own", records, {"china.jpg": encoded(china, quality=90), "flower.jpg": encoded(flower, quality=90)}
    )
    store = Store(str(tmp_path / "store"))
    found = run({"own": own_source(tmp_path / "own")}, store)
    kept = rows(found, store)
    assert {(row["dataset"], row["task"], row["width"], row["height"], row["licence"]) for row in kept} == {
        ("own", "caption", 640, 427, "CC0-1.0"), ("own", "instruction", 640, 427, "CC0-1.0"),
    }  # fmt: skip
    page = card(found)
    assert page.count("data:image/jpeg;base64,") == 2
    assert "<mark>a temple roof before a cloudy sky" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_duplicate_rules(tmp_path):
    one, copy, other = encoded(photo(1)), encoded(photo(1), quality=60), encoded(photo(2))
    files = {"one.jpg": one, "copy.jpg": copy, "other.jpg": other}
    captions = [
        ("one.jpg", "first words"),
        ("one.jpg", "first words"),
        ("one.jpg", "second words"),
        ("copy.jpg", "third words"),
        ("other.jpg", "fourth"),
    ]
    write_own(tmp_path / "own", [{"image": image, "caption": text} for image, text in captions], files)
    reasons = {}
    for rule in ("samples", "images", "records"):
        store = Store(str(tmp_path / rule))
        reasons[rule] = [
            row["reason"] for row in rejected(run({"own": own_source(tmp_path / "own", duplicates=rule)}, store), store)
        ]
    assert reasons == {
        "samples": ["duplicate sample"],
        "images": ["duplicate sample", "near-duplicate image"],
        "records": ["duplicate sample", "duplicate image", "near-duplicate image"],
    }


def test_duplicate_captions_caps_and_licences(tmp_path):
    text = "a man in a red coat walks his dog along the sandy beach at sunset"
    records = [{"image": f"{n}.jpg", "caption": text + " today" * (n == 1)} for n in range(2)]
    records += [{"image": f"{n}.jpg", "caption": f"words of number {n}"} for n in range(2, 8)] + [
        {"image": "8.jpg", "caption": "rare", "licence": "NC"}
    ]
    write_own(tmp_path / "own", records, {f"{n}.jpg": encoded(photo(n)) for n in range(9)})
    store = Store(str(tmp_path / "store"))
    source = own_source(tmp_path / "own", duplicate_captions=0.7, cap=4)
    found = run({"own": source}, store, licences=("CC0-1.0",))
    assert found.report["reasons"] == {"over the cap": 3, "duplicate caption": 1, "licence not allowed": 1}
    kept = rows(found, store)
    again = run({"own": source}, store, "again", licences=("CC0-1.0",))
    assert [row["id"] for row in rows(again, store)] == [row["id"] for row in kept]


def test_shards_have_the_configured_size(tmp_path):
    write_own(
        tmp_path / "own",
        [{"image": f"{n}.jpg", "caption": f"words {n}"} for n in range(25)],
        {f"{n}.jpg": encoded(photo(n)) for n in range(25)},
    )
    store = Store(str(tmp_path / "store"))
    found = run({"own": own_source(tmp_path / "own")}, store, rows_per_shard=10)
    assert [(entry.name, entry.meta["rows"]) for entry in found.manifest.entries] == [
        ("own/train/00000.lance", 10), ("own/train/00001.lance", 10), ("own/train/00002.lance", 5),
    ]  # fmt: skip


def test_original_normalisation_is_optional(tmp_path):
    write_own(
        tmp_path / "vqa",
        [{"image": "a.jpg", "question": "At 11:30, what's IT?", "question_id": 1, "answer": ["A Cat."] * 10}],
        {"a.jpg": encoded(photo(1))},
    )
    lines = [json.loads(line) for line in (tmp_path / "vqa/train.jsonl").read_text().splitlines()]
    (tmp_path / "vqa/vqa_train.json").write_text(json.dumps([line | {"dataset": "vqa"} for line in lines]))
    texts = {}
    for rule in ("original", "none"):
        store = Store(str(tmp_path / rule))
        source = SourceSettings(
            locations=(str(tmp_path / "vqa"),), datasets={"vqav2": DatasetSettings(reader="vqav2", text=rule)}
        )
        texts[rule] = [turn["text"] for turn in rows(run({"vqa": source}, store), store)[0]["turns"]]
    assert texts == {"original": ["at 11 30, what's it?", "a cat"], "none": ["At 11:30, what's IT?", "A Cat."]}


def test_all_dataset_errors_are_reported_together(tmp_path):
    write_own(tmp_path / "own", [{"image": "a.jpg", "caption": "words"}], {"a.jpg": encoded(photo(1))})
    wrong = {
        "a": DatasetSettings(reader="nothing"),
        "b": DatasetSettings(reader="jsonl", splits=("validation",)),
        "c": DatasetSettings(reader="refcoco"),
    }
    source = SourceSettings(locations=(str(tmp_path / "own"),), datasets=wrong)
    with pytest.raises(
        ValueError,
        match=r"a\.reader: 'nothing' is not a reader[\s\S]*b\.splits: \['validation'\] are not there; found: train[\s\S]*datasets\.c: ",  # noqa: E501
    ):
        run({"own": source}, Store(str(tmp_path / "store")))


def test_no_samples_error_names_reasons(tmp_path):
    write_own(tmp_path / "own", [{"image": "a.jpg", "caption": "words"}], {"a.jpg": b""})
    with pytest.raises(NoSamplesError, match=r"no sample is left of 1 records; reasons: {'empty file': 1}"):
        run({"own": own_source(tmp_path / "own")}, Store(str(tmp_path / "store")))
