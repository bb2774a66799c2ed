"""Writes the curated rows of a unit as final shards: the same bytes on every machine and in every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.data.shards import write_batches
from mgpt.data.types import SCHEMA
from mgpt.storage import Entry, Store

_BATCH_ROWS = 25  # in memory at a time


@dataclass(frozen=True)
class ShardJob:
    """A task: the rows of a unit's table where `keep` [rows] is true become the shards `names` below `folder`."""

    rows_uri: str
    keep: np.ndarray
    names: list[str]
    folder: str
    rows_per_shard: int
    meta: dict[str, Any]


def shard_counts(kept: int, rows_per_shard: int) -> int:
    """Returns how many shards `kept` rows fill."""
    return -(-kept // rows_per_shard)


def write_shards(store: Store, job: ShardJob) -> list[Entry]:
    """Writes the kept rows of one unit and split, a few rows in memory at a time; returns the shards' manifest
    entries.
    """
    entries = []
    with store.open(job.rows_uri) as file:
        kept = _KeptRows(pq.ParquetFile(file), job.keep)
        for name in job.names:
            uri = f"{job.folder}/{name}"
            rows = write_batches(store, uri, kept.take(job.rows_per_shard))
            entries.append(store.entry(name, uri, rows=rows, **job.meta))
    return entries


class _KeptRows:
    """The rows of a table where `keep` is true, handed out shard by shard."""

    def __init__(self, file: pq.ParquetFile, keep: np.ndarray) -> None:
        self._batches = self._filter(file, keep)
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yields the next `rows` kept rows, or as many as there are."""
        while rows and (batch := self._rest or next(self._batches, None)) is not None:
            taken = batch.slice(0, rows)
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            rows -= taken.num_rows
            yield taken

    @staticmethod
    def _filter(file: pq.ParquetFile, keep: np.ndarray) -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=SCHEMA.names):
            kept = batch.filter(pa.array(keep[start : start + batch.num_rows]))
            start += batch.num_rows
            if kept.num_rows:
                yield kept
