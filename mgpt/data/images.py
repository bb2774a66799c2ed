"""The names of images: the sha256 of their bytes, and those of a whole shard in a file.

Imports no torch: a process that only names images is ready in a second.
"""

from __future__ import annotations

import hashlib
import io

import pyarrow.parquet as pq

from mgpt.storage import Store

NO_IMAGE = bytes(32)  # stands for a row without an image


def image_digest(image: bytes) -> bytes:
    """The name of an image: the sha256 of its encoded bytes."""
    return hashlib.sha256(image).digest()


def write_image_digests(shard: str, uri: str) -> None:
    """Writes the names of a curated shard's images, 32 bytes a row."""
    column = pq.read_table(io.BytesIO(Store(shard.rsplit("/", 1)[0]).read(shard)), columns=["image"])["image"]
    names = [NO_IMAGE if image.as_py() is None else image_digest(image.as_py()) for image in column]
    Store(uri.rsplit("/", 1)[0]).write(uri, b"".join(names))
