"""Thumbnails of every distinct image of a curation, in a temporary file: a few thousand of millions are in memory at a
time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mgpt.curation.image_checks import THUMBNAIL
from mgpt.storage import Store

NO_IMAGE = -1  # the position of a text-only sample's image
_SHAPE = (THUMBNAIL, THUMBNAIL, 3)
_BYTES = THUMBNAIL * THUMBNAIL * 3
_BATCH = 1_000


class ThumbnailStore:
    """Indexed like an array [images, 32, 32, 3] uint8, in the order in which the `images` tables first name their
    images.

    The file has no name and is removed with the object or the process.
    """

    def __init__(self, store: Store, uris: Sequence[str]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)
        self._index: dict[bytes, int] = {}
        for uri in uris:
            with store.open(uri) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH):
                    self._add(batch.column("sha256").to_pylist(), batch.column("thumbnail").to_pylist())
        self._file.flush()
        self._digests = np.array(list(self._index), dtype="V32")

    def _add(self, digests: Sequence[str], thumbnails: Sequence[bytes]) -> None:
        for digest, thumbnail in zip(map(bytes.fromhex, digests), thumbnails, strict=True):
            if digest not in self._index:
                self._index[digest] = len(self._index)
                self._file.write(thumbnail)

    def __enter__(self) -> ThumbnailStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._digests)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if np.ndim(rows) == 0:
            return np.frombuffer(self._read(int(rows)), dtype=np.uint8).reshape(_SHAPE)
        return np.frombuffer(b"".join(map(self._read, rows)), dtype=np.uint8).reshape(-1, *_SHAPE)

    def _read(self, row: int) -> bytes:
        return os.pread(self._file.fileno(), _BYTES, int(row) * _BYTES)

    def positions(self, digests: Sequence[str | None]) -> np.ndarray:
        """Returns the positions [n] of images by their sha256; `NO_IMAGE` for None."""
        return np.array(
            [self._index[bytes.fromhex(digest)] if digest else NO_IMAGE for digest in digests], dtype=np.int64
        )

    def forget_digests(self) -> None:
        """Frees the index that only `positions` needs."""
        self._index = {}

    def digest(self, row: int) -> str:
        """Returns the first 16 hexadecimal digits of an image's sha256, for messages."""
        return bytes(self._digests[row]).hex()[:16]
