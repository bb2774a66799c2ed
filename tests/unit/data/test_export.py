"""Curated samples in other tools' formats."""

import io
import json

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from mgpt.data.boxes import Box
from mgpt.data.export import FORMS, export_shards
from mgpt.data.shards import write_shard
from mgpt.data.types import Sample, SampleImage, Turn
from mgpt.storage import Store


def encoded(number: int, kind: str) -> SampleImage:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (number, 0, 0)).save(file, kind)
    return SampleImage(file.getvalue(), 20, 10)


def sample(number: int) -> Sample:
    kinds = [(), ("JPEG",), ("PNG", "WEBP")][number % 3]
    return Sample.create(
        dataset="made",
        split="train",
        task="refer" if kinds else "text",
        images=tuple(encoded(number, kind) for kind in kinds),
        turns=(Turn("user", "größe"), Turn("assistant", "<box:0>" if kinds else "7")),
        boxes=(Box(1, 2, 3, 4),) if kinds else (),
        extra={"key": str(number)},
    )


SAMPLES = [sample(number) for number in range(70)]


@pytest.fixture
def entries(tmp_path):
    store = Store(str(tmp_path / "store"))
    rows = write_shard(store, store.uri("0.lance"), SAMPLES)
    return [store.entry("made/train/0.lance", store.uri("0.lance"), dataset="made", split="train", rows=rows)]


def test_parquet(entries, tmp_path):
    assert export_shards(entries, tmp_path / "out", "parquet") == len(SAMPLES)
    rows = pq.read_table(tmp_path / "out/made/train/0.parquet").to_pylist()
    assert [Sample.from_row(row) for row in rows] == SAMPLES


def test_webdataset(entries, tmp_path):
    export_shards(entries, tmp_path / "out", "webdataset")
    found = list(webdataset.WebDataset(str(tmp_path / "out/made/train/0.tar"), shardshuffle=False))
    assert [row["__key__"] for row in found] == [one.id for one in SAMPLES]
    for row, one in zip(found, SAMPLES, strict=True):
        facts = json.loads(row["json"])
        assert [row[name] for name in facts["images"]] == [image.data for image in one.images]
        assert facts["turns"][0]["text"] == "größe"
        assert facts["extra"] == {"key": one.extra["key"]}


def test_jsonl(entries, tmp_path):
    export_shards(entries, tmp_path / "out", "jsonl")
    folder = tmp_path / "out/made/train"
    found = [json.loads(line) for line in (folder / "0.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in found] == [one.id for one in SAMPLES]
    for row, one in zip(found, SAMPLES, strict=True):
        assert [(folder / name).read_bytes() for name in row["images"]] == [image.data for image in one.images]
        assert row["boxes"] == [list(box) for box in one.boxes]


def test_unknown_format_and_missing_shards(entries, tmp_path):
    with pytest.raises(ValueError, match=f"use one of {', '.join(FORMS)}"):
        export_shards(entries, tmp_path, "csv")
    with pytest.raises(ValueError, match="no curated shards"):
        export_shards([], tmp_path, "jsonl")
