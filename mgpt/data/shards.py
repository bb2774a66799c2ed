"""Shards: Lance files of samples, any row of which is read by itself, on local disk and on object stores.

`LanceFileWriter` writes the same bytes for the same rows, so a shard keeps its content address; the version of the file
format is pinned for that reason. Everything but the encoded images is read without them (`METADATA`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader, LanceFileWriter

from mgpt.data.types import SCHEMA, Sample
from mgpt.storage import Entry, Store
from mgpt.storage.s3 import lance_options

FORMAT_VERSION = "2.1"
SUFFIX = ".lance"
# Lance warns at every fork of a process that has imported it. Processes here fork only to start another program.
warnings.filterwarnings("ignore", message="lance is not fork-safe")

_OPEN_FILES = 256  # readers that a process keeps open; each holds its file's footer and column metadata
_CONCURRENT_FILES = 16  # read at the same time
_WRITTEN_ROWS = 64  # rows of a batch that is written at once
_SCANNED_ROWS = 256  # rows of a batch that is read in file order


def write_shard(store: Store, uri: str, samples: Iterable[Sample]) -> int:
    """Writes samples as one shard, atomically, and returns their number."""
    return write_batches(store, uri, _batches(samples))


def write_batches(store: Store, uri: str, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes record batches of `SCHEMA` as one shard, atomically, and returns the number of rows."""
    rows = 0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"shard{SUFFIX}"
        with LanceFileWriter(str(path), SCHEMA, version=FORMAT_VERSION) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        store.put_file(path, uri)
    return rows


def _batches(samples: Iterable[Sample]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for sample in samples:
        rows.append(sample.to_row())
        if len(rows) == _WRITTEN_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def scan(uri: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one shard in order, some hundred at a time; all columns where none are named."""
    reader = _open(uri, columns)
    yield from reader.read_all(batch_size=_SCANNED_ROWS, batch_readahead=2).to_batches()


def scan_samples(uri: str) -> Iterator[Sample]:
    """Yields the samples of one shard in order."""
    for batch in scan(uri):
        yield from map(Sample.from_row, batch.to_pylist())


def image_digests(uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sha256 of every image of a shard, (images,) S32, and the images of each row, (rows,) int; reads no
    image.
    """
    digests: list[bytes] = []
    counts: list[np.ndarray] = []
    for batch in scan(uri, ["images"]):
        column = batch.column("images")
        digests.append("".join(column.flatten().field("sha256").to_pylist()).encode())
        counts.append(np.diff(column.offsets.to_numpy()))
    raw = bytes.fromhex(b"".join(digests).decode())
    return np.frombuffer(raw, "S32"), np.concatenate(counts) if counts else np.zeros(0, np.int64)


class RowReader:
    """Random access to rows of many shards, in memory that does not grow with their number.

    Args:
        columns: names of the columns to read; all by default.
    """

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        self._columns = columns
        self._open: OrderedDict[str, LanceFileReader] = OrderedDict()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(_CONCURRENT_FILES, thread_name_prefix="shards")

    def rows(self, wanted: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Returns the rows at (URI, row number) pairs, in the order given: one call per shard, several at a time.

        Raises:
            FileNotFoundError: a shard does not exist.
            ValueError: a row number is outside its shard.
        """
        by_file: dict[str, list[int]] = {}
        for position, (uri, _) in enumerate(wanted):
            by_file.setdefault(uri, []).append(position)
        tasks = [(uri, [wanted[position][1] for position in positions]) for uri, positions in by_file.items()]
        found: list[dict[str, Any]] = [{} for _ in wanted]
        tables = self._pool.map(lambda task: self._take(*task), tasks)
        for positions, taken in zip(by_file.values(), tables, strict=True):
            for position in positions:
                found[position] = taken[wanted[position][1]]
        return found

    def _take(self, uri: str, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        ascending = sorted(set(numbers))  # as `take_rows` requires
        reader = self._reader(uri)
        outside = [number for number in ascending if not 0 <= number < reader.num_rows()]
        if outside:
            raise ValueError(f"{uri}: has {reader.num_rows()} rows, and row {outside[0]} was asked for")
        return dict(zip(ascending, reader.take_rows(ascending).to_table().to_pylist(), strict=True))

    def _reader(self, uri: str) -> LanceFileReader:
        with self._lock:
            if uri in self._open:
                self._open.move_to_end(uri)
                return self._open[uri]
        reader = _open(uri, self._columns)
        with self._lock:
            self._open[uri] = reader
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return reader


class SampleReader:
    """Random access to the curated samples of some datasets, by their index in the dataset.

    Args:
        entries: shards by dataset.
    """

    def __init__(self, entries: Mapping[str, Sequence[Entry]]) -> None:
        self._shards = {dataset: sorted(shards, key=lambda shard: shard.name) for dataset, shards in entries.items()}
        self._ends = {
            dataset: np.cumsum([shard.meta["rows"] for shard in shards]) for dataset, shards in self._shards.items()
        }
        self._rows = RowReader()

    def read(self, wanted: Sequence[tuple[str, int]]) -> list[Sample]:
        """Returns samples by (dataset, index), in the order given; an index counts over the shards by their names."""
        rows = self._rows.rows([self._position(dataset, index) for dataset, index in wanted])
        return [Sample.from_row(row) for row in rows]

    def _position(self, dataset: str, index: int) -> tuple[str, int]:
        number = int(np.searchsorted(self._ends[dataset], index, side="right"))
        first = int(self._ends[dataset][number - 1]) if number else 0
        return self._shards[dataset][number].uri, index - first


def _open(uri: str, columns: Sequence[str] | None) -> LanceFileReader:
    """Opens a shard. Raises FileNotFoundError, or ValueError where its content is damaged."""
    options, names = lance_options(uri), None if columns is None else list(columns)
    try:
        return LanceFileReader(uri, storage_options=options, columns=names)
    except (OSError, ValueError) as error:  # Lance raises ValueError for a file that does not exist, too
        if not Store(uri.rsplit("/", 1)[0]).exists(uri):
            raise FileNotFoundError(f"{uri} is gone; run the stage that made it again") from error
        raise type(error)(f"{uri} cannot be read ({error}); run the stage that made it again") from error
