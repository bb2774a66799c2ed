"""Shards: bytes, rows in any order, and what is read without images."""

import hashlib

import numpy as np
import pytest

from mgpt.data.boxes import Box
from mgpt.data.shards import RowReader, SampleReader, image_digests, scan, scan_samples, write_shard
from mgpt.data.types import METADATA, Sample, SampleImage, Turn
from mgpt.storage import Manifest, Store

ROWS = 300


def image(number: int) -> SampleImage:
    return SampleImage(np.random.default_rng(number).bytes(2000), 64, 48)


def sample(number: int) -> Sample:
    """A sample with 0, 1 or 2 images; of two, the second has the box."""
    images = tuple(image(number + 1000 * at) for at in range(number % 3))
    boxes = {"boxes": (Box(1, 2, 30, 40),), "box_images": (1,)} if len(images) == 2 else {}
    return Sample.create(
        dataset="made",
        split="train",
        task="caption",
        images=images,
        turns=(Turn("user", ""), Turn("assistant", f"number {number}", ("a", "b")[: number % 2])),
        **boxes,
    )


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


@pytest.fixture
def shards(store):
    """Entries of two shards, the second of one row."""
    entries = []
    for name, numbers in (("0", range(ROWS)), ("1", [ROWS])):
        uri = store.uri(f"{name}.lance")
        rows = write_shard(store, uri, map(sample, numbers))
        entries.append(store.entry(f"made/train/{name}.lance", uri, dataset="made", split="train", rows=rows))
    return entries


def test_samples_are_read_as_written(shards):
    assert [one for shard in shards for one in scan_samples(shard.uri)] == list(map(sample, range(ROWS + 1)))


def test_equal_samples_give_equal_bytes(store, shards):
    write_shard(store, store.uri("again.lance"), map(sample, range(ROWS)))
    assert store.digest(store.uri("again.lance"))[0] == shards[0].sha256


def test_rows_come_in_the_order_asked_for(shards):
    wanted = [*np.random.default_rng(0).integers(0, ROWS + 1, 200).tolist(), ROWS, 7, 7]
    found = SampleReader({"made": shards[::-1]}).read([("made", index) for index in wanted])
    assert found == list(map(sample, wanted))


def test_no_rows(shards):
    assert SampleReader({"made": shards}).read([]) == []


@pytest.mark.parametrize("row", [ROWS, -1])
def test_row_outside_a_shard_is_refused(shards, row):
    with pytest.raises(ValueError, match=rf"has {ROWS} rows, and row {row} was asked for"):
        RowReader().rows([(shards[0].uri, 3), (shards[0].uri, row)])


def test_lost_shard_is_named(shards, store):
    store.delete(shards[0].uri)
    with pytest.raises(FileNotFoundError, match=r"0\.lance"):
        SampleReader({"made": shards}).read([("made", 0)])


def test_damaged_shard_is_named(shards, store):
    store.write(shards[0].uri, store.read(shards[0].uri)[:-500])
    with pytest.raises((OSError, ValueError), match=r"0\.lance cannot be read"):
        list(scan_samples(shards[0].uri))


def test_few_of_many_shards_stay_open(store, monkeypatch):
    monkeypatch.setattr("mgpt.data.shards._OPEN_FILES", 3)
    uris = [store.uri(f"{number}.lance") for number in range(9)]
    for number, uri in enumerate(uris):
        write_shard(store, uri, [sample(number)])
    reader = RowReader(["id"])
    for _ in range(2):
        assert [row["id"] for row in reader.rows([(uri, 0) for uri in uris])] == [sample(n).id for n in range(9)]
    assert len(reader._open) == 3


def test_metadata_is_read_without_images(shards):
    (row, *_) = next(scan(shards[0].uri, METADATA)).to_pylist()
    assert set(row) == set(METADATA)


def test_image_digests_by_row(shards):
    digests, counts = image_digests(shards[0].uri)
    expected = [hashlib.sha256(one.data).digest() for number in range(ROWS) for one in sample(number).images]
    assert digests.tolist() == [digest.rstrip(b"\0") for digest in expected]  # numpy strips zeros at the end
    assert counts.tolist() == [number % 3 for number in range(ROWS)]


def test_altered_shard_is_found(shards, store):
    Manifest(shards).verify()
    store.write(shards[1].uri, store.read(shards[1].uri)[:-1] + b"x")
    with pytest.raises(ValueError, match=r"1 of 2 files differ"):
        Manifest(shards).verify()
