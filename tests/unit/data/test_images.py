"""Digests of images."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.data.images import NO_IMAGE, image_digest, write_image_digests
from mgpt.storage import Store


def test_digests_follow_row_order(tmp_path):
    shard, named = Store(str(tmp_path / "data")), Store(str(tmp_path / "images"))
    content = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([b"one", None, b"two"], pa.binary())}), content)
    shard.write(shard.uri("0.parquet"), content.getvalue())
    write_image_digests(shard.uri("0.parquet"), named.uri("0"))
    assert named.read(named.uri("0")) == image_digest(b"one") + NO_IMAGE + image_digest(b"two")
    assert image_digest(b"one") == hashlib.sha256(b"one").digest()
