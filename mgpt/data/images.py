"""Digests that identify images. Imports no torch, so that workers that only hash start within a second."""

from __future__ import annotations

import hashlib
import io

import pyarrow.parquet as pq

from mgpt.storage import Store

NO_IMAGE = bytes(32)  # stands for a row without an image


def image_digest(image: bytes) -> bytes:
    """Returns the sha256 of an image's encoded bytes."""
    return hashlib.sha256(image).digest()


def write_image_digests(shard: str, uri: str) -> None:
    """Writes the digests of a curated shard's images to `uri`, 32 bytes per row."""
    column = pq.read_table(io.BytesIO(Store(shard.rsplit("/", 1)[0]).read(shard)), columns=["image"])["image"]
    digests = [NO_IMAGE if image.as_py() is None else image_digest(image.as_py()) for image in column]
    Store(uri.rsplit("/", 1)[0]).write(uri, b"".join(digests))
