"""The reader of GRIT in Parquet files and shards."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mgpt.data.boxes import Box
from tests.fixtures.datasets import shard

CAPTION = "A dog on a red sofa in the room"
ROW = {
    "key": "000000012",
    "id": 1,
    "url": "https://x",
    "caption": CAPTION,
    "width": 640,
    "height": 480,
    "clip_similarity_vitb32": 0.3,
    # "A dog", "a red sofa", "red sofa" (inside the former), "the room" with two boxes
    "noun_chunks": [
        [9.0, 19.0, 0.5, 0.5, 1.0, 1.0, 0.9],
        [0.0, 5.0, 0.0, 0.25, 0.5, 0.75, 0.99],
        [11.0, 19.0, 0.0, 0.0, 0.1, 0.1, 0.8],
        [23.0, 31.0, 0.0, 0.0, 1.0, 1.0, 0.8],
        [23.0, 31.0, 0.1, 0.1, 0.9, 0.9, 0.7],
    ],
    "ref_exps": [
        [0.0, 19.0, 0.0, 0.25, 0.5, 0.75, 0.99],
        [23.0, 31.0, 0.0, 0.0, 1.0, 1.0, 0.8],
        [23.0, 31.0, 0.1, 0.1, 0.9, 0.9, 0.7],
    ],
}


def write(dataset, rows, layout: str) -> None:
    image = dataset.image("images/000000012.jpg", 64, 48)
    if layout == "shard":
        members = [
            member
            for row in rows
            for member in ((f"{row['key']}.jpg", image), (f"{row['key']}.json", json.dumps(row).encode()))
        ]
        dataset.file("00000.tar", shard(*members))
        return
    rows = [row | {"image": {"bytes": image, "path": None}} for row in rows] if layout == "column" else rows
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    dataset.file("grit.parquet", file.getvalue())


@pytest.mark.parametrize("layout", ["folder", "column", "shard"])
def test_three_tasks(dataset, turn_texts, layout: str):
    write(dataset, [ROW], layout)
    (refer,) = dataset.samples("grit_refer")
    assert turn_texts(refer) == [("user", "A dog on a red sofa"), ("assistant", "<box:0>")]
    assert refer.boxes == (Box(0, 12, 32, 36),)
    (identify,) = dataset.samples("grit_identify")
    assert turn_texts(identify) == [("user", "<box:0>"), ("assistant", "A dog on a red sofa")]
    (grounding,) = dataset.samples("grit_grounding")
    assert (
        turn_texts(grounding)[1][1]
        == "<p>A dog</p> <box:0> on <p>a red sofa</p> <box:1> in <p>the room</p> <box:2><box:3>"
    )
    assert grounding.boxes[1] == Box(32, 24, 64, 48)
    assert (refer.images[0].width, refer.images[0].height) == (64, 48)


def test_reject_reasons(dataset):
    wrong = [[0.0, 99.0, 0.0, 0.0, 1.0, 1.0, 0.9]]
    write(
        dataset,
        [
            ROW | {"ref_exps": []},
            ROW | {"ref_exps": wrong},
            ROW | {"ref_exps": ROW["ref_exps"][1:]},
            ROW | {"key": "000000404"},
        ],
        "folder",
    )
    assert [reason for _, reason in dataset.reasons("grit_refer")] == [
        "missing box",
        "missing box",
        "missing box",
        "missing image",
    ]


def test_damaged_parquet_file(dataset):
    write(dataset, [ROW], "folder")
    data = (dataset.root / "grit.parquet").read_bytes()
    for broken in (data[:-20], b"", data[:30] + b"\0" * (len(data) - 200) + data[-170:]):
        dataset.file("grit.parquet", broken)
        assert dataset.reasons("grit_refer") == [("grit.parquet", "unreadable file")]
