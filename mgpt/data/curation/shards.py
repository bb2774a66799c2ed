"""The curated rows of one unit as final shards: the same bytes on every machine and every run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.data.curation.parts import parquet_options
from mgpt.data.sample import SCHEMA
from mgpt.storage import Entry, Store

_GROUP_ROWS = 500


@dataclass(frozen=True)
class ShardJob:
    """The rows of a unit's table where `keep` [rows] is true, to be written as the shards `names` below `folder`."""

    rows_uri: str
    keep: np.ndarray
    names: list[str]
    folder: str
    rows_per_shard: int
    meta: dict[str, Any]


def shard_counts(kept: int, rows_per_shard: int) -> int:
    """How many shards `kept` rows fill."""
    return -(-kept // rows_per_shard)


def write_shards(store: Store, job: ShardJob) -> list[Entry]:
    """Writes the kept rows of one unit and split, and gives the manifest entries of the shards."""
    entries = []
    with store.open(job.rows_uri) as file, tempfile.TemporaryDirectory() as scratch:
        shards = _shards(pq.ParquetFile(file), job.keep, job.rows_per_shard)
        for name, batches in zip(job.names, shards, strict=True):
            path = Path(scratch) / "shard.parquet"
            rows = _write(batches, path)
            store.put_file(path, f"{job.folder}/{name}")
            entries.append(store.entry(name, f"{job.folder}/{name}", rows=rows, **job.meta))
    return entries


def _write(batches: list[pa.RecordBatch], path: Path) -> int:
    with pq.ParquetWriter(path, SCHEMA, **parquet_options(SCHEMA)) as writer:
        writer.write_table(pa.Table.from_batches(batches), row_group_size=_GROUP_ROWS)
    return sum(batch.num_rows for batch in batches)


def _shards(file: pq.ParquetFile, keep: np.ndarray, size: int) -> Iterator[list[pa.RecordBatch]]:
    waiting: list[pa.RecordBatch] = []
    rows = start = 0
    for batch in file.iter_batches(batch_size=_GROUP_ROWS, columns=SCHEMA.names):
        kept = batch.filter(pa.array(keep[start : start + batch.num_rows]))
        start += batch.num_rows
        while kept.num_rows:
            piece = kept.slice(0, size - rows)
            kept = kept.slice(piece.num_rows)
            waiting.append(piece)
            rows += piece.num_rows
            if rows == size:
                yield waiting
                waiting, rows = [], 0
    if waiting:
        yield waiting
