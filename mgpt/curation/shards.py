"""Writes the curated rows of a unit as final shards: the same bytes on every machine and in every run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.curation.filter_records import parquet_options
from mgpt.data.types import SCHEMA
from mgpt.storage import Entry, Store

# A row group ends at this many rows or bytes of images; one is in memory while it is written and while it is read.
_GROUP_ROWS = 500
_GROUP_BYTES = 8 << 20
_BATCH_ROWS = 25


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
    """Writes the kept rows of one unit and split, one row group in memory at a time; returns the shards' manifest
    entries."""
    entries = []
    with store.open(job.rows_uri) as file, tempfile.TemporaryDirectory() as scratch:
        groups = _groups(pq.ParquetFile(file), job.keep, job.rows_per_shard)
        for name in job.names:
            path = Path(scratch) / "shard.parquet"
            rows = _write(groups, path, job.rows_per_shard)
            store.put_file(path, f"{job.folder}/{name}")
            entries.append(store.entry(name, f"{job.folder}/{name}", rows=rows, **job.meta))
    return entries


def _write(groups: Iterator[pa.Table], path: Path, max_rows: int) -> int:
    rows = 0
    with pq.ParquetWriter(path, SCHEMA, **parquet_options(SCHEMA)) as writer:
        while rows < max_rows and (group := next(groups, None)) is not None:
            writer.write_table(group, row_group_size=_GROUP_ROWS)
            rows += group.num_rows
    return rows


def _groups(file: pq.ParquetFile, keep: np.ndarray, size: int) -> Iterator[pa.Table]:
    """Yields the kept rows as row groups, with a group boundary after every `size` rows."""
    waiting: list[pa.RecordBatch] = []
    rows = start = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=SCHEMA.names):
        kept = batch.filter(pa.array(keep[start : start + batch.num_rows]))
        start += batch.num_rows
        while kept.num_rows:
            room = min(_GROUP_ROWS, size - rows) - sum(piece.num_rows for piece in waiting)
            waiting.append(kept.slice(0, room))
            kept = kept.slice(waiting[-1].num_rows)
            if waiting[-1].num_rows == room or sum(piece.nbytes for piece in waiting) >= _GROUP_BYTES:
                yield pa.Table.from_batches(waiting)
                rows = (rows + sum(piece.num_rows for piece in waiting)) % size
                waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
