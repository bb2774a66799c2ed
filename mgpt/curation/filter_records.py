"""The first pass of curation: checks and repairs the records of one file, and writes kept rows, thumbnails and rejected
rows."""

from __future__ import annotations

import json
import pickle
import struct
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings
from mgpt.curation.image_checks import CheckedImage, InvalidImage, check_image, orient_box
from mgpt.curation.plan import Unit
from mgpt.curation.rules import InvalidSample, check_sample, fit_box
from mgpt.data.boxes import Box
from mgpt.data.datasets import READERS, RejectedRecord
from mgpt.data.datasets.base import DATA_ERRORS
from mgpt.data.text_normalization import normalize_sample
from mgpt.data.types import IMAGE_BYTES, SCHEMA, Sample, SampleImage
from mgpt.storage import Store

# A sample, and what only the deduplication needs: its image's hash and names in other datasets, and the key under which
# an evaluation reports it.
_DEDUP_FIELDS = [
    pa.field("image_sha256", pa.string()),
    pa.field("names", pa.list_(pa.string())),
    pa.field("key", pa.string()),
]
ROWS = pa.schema([*SCHEMA, *_DEDUP_FIELDS])
IMAGES = pa.schema([("sha256", pa.string()), ("thumbnail", pa.binary())])
REJECTED = pa.schema([(name, pa.string()) for name in ("dataset", "split", "source", "reason", "detail", "step")])
# Errors that damaged content raises, and missing files. A server that is down or a full disk is not among them: such
# errors are no record's fault and end the run, and the next run continues from there.
_CONTENT_ERRORS = (
    *DATA_ERRORS,
    AssertionError,
    EOFError,
    RuntimeError,
    SyntaxError,
    pickle.PickleError,
    struct.error,
    tarfile.TarError,
    zlib.error,
)
_FILE_ERRORS = (*_CONTENT_ERRORS, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_GROUP_BYTES = 16 << 20  # a row group is written when it holds this many bytes of images
_GROUP_ROWS = 1_000


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Returns writer options for tables with images: encoded images are not compressed again, and neighbouring rows
    with the same image store it once (a large dictionary page)."""
    encoded = [name for name in _leaf_columns(schema) if name.startswith((IMAGE_BYTES, "thumbnail"))]
    compression = {name: "NONE" if name in encoded else "ZSTD" for name in _leaf_columns(schema)}
    statistics = [name for name in _leaf_columns(schema) if name not in encoded]
    return {"compression": compression, "dictionary_pagesize_limit": _GROUP_BYTES * 4, "write_statistics": statistics}


def _leaf_columns(schema: pa.Schema) -> list[str]:
    """Returns paths of the leaf columns as Parquet names them (`turns.list.element.text`)."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    written = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.schema
    return [written.column(position).path for position in range(len(written))]


class _Table:
    """A Parquet file written in row groups, so that memory does not grow with the number of rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema, self.bytes = schema, 0
        self.rows: list[dict[str, Any]] = []
        self.writer = pq.ParquetWriter(path, schema, **parquet_options(schema))

    def add(self, row: dict[str, Any], size: int = 0) -> None:
        self.rows.append(row)
        self.bytes += size
        if len(self.rows) >= _GROUP_ROWS or self.bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows, self.bytes = [], 0

    def close(self) -> None:
        self.flush()
        self.writer.close()


def filter_unit(unit: Unit, settings: CurateSettings, store: Store, folder: str) -> dict[str, Any]:
    """Checks every record of a unit, writes its tables `rows`, `images` and `rejected` below `folder`, and returns
    counts.

    A unit that an earlier, interrupted run finished is skipped: the counts are written last and stand for the whole
    unit.
    """
    done = f"{folder}/{unit.name}.json"
    if store.exists(done):
        return json.loads(store.read(done))
    with tempfile.TemporaryDirectory() as scratch:
        counts = _UnitFilter(unit, settings, Path(scratch)).run()
        for name in ("rows", "images", "rejected"):
            store.put_file(Path(scratch) / f"{name}.parquet", f"{folder}/{unit.name}.{name}.parquet")
    store.write(done, json.dumps(counts, sort_keys=True).encode())
    return counts


class _UnitFilter:
    def __init__(self, unit: Unit, settings: CurateSettings, scratch: Path) -> None:
        self.unit, self.settings = unit, settings
        self.reader = READERS[unit.settings.reader].with_name(unit.dataset)
        self.rows = _Table(scratch / "rows.parquet", ROWS)
        self.images = _Table(scratch / "images.parquet", IMAGES)
        self.rejected = _Table(scratch / "rejected.parquet", REJECTED)
        self.repairs: Counter[str] = Counter()
        self.seen_images: set[str] = set()
        self.check_image = lru_cache(maxsize=64)(self._check_image)

    def run(self) -> dict[str, Any]:
        records = kept = 0
        for record in self._records():
            records += 1
            if isinstance(record, RejectedRecord):
                self._reject(record.split, record.source, record.reason, record.detail, "read")
                continue
            try:
                self._keep(record)
                kept += 1
            except (InvalidImage, InvalidSample) as error:
                self._reject(record.split, record.source, error.reason, str(error), "check")
        for table in (self.rows, self.images, self.rejected):
            table.close()
        repairs = dict(sorted(self.repairs.items()))
        return {"records": records, "kept": kept, "rejected": records - kept, "repaired": repairs}

    def _records(self) -> Iterator[Sample | RejectedRecord]:
        part = self.unit.part
        try:
            yield from self.reader.records([part])
        except _FILE_ERRORS as error:
            # A reader must not raise for the content of a file; if it does, the rest of the file is accounted for as
            # one record.
            yield RejectedRecord(
                self.unit.dataset, part.split, part.path, "unreadable file", f"{type(error).__name__}: {error}"
            )

    def _reject(self, split: str, source: str, reason: str, detail: str, step: str) -> None:
        # A damaged file may contain any text: the table takes only text that can be encoded.
        source, detail = (text.encode("utf-8", "replace").decode()[:300] for text in (source, detail))
        row = {"dataset": self.unit.dataset, "split": split, "source": source}
        self.rejected.add({**row, "reason": reason, "detail": detail, "step": step})

    def _check_image(self, digest: str, data: bytes) -> CheckedImage | InvalidImage:
        """Returns rather than raises the error, so that `lru_cache` keeps it too; `digest` is the key of the cache."""
        try:
            return check_image(data, self.settings)
        except InvalidImage as error:
            return error

    def _keep(self, sample: Sample) -> None:
        """Checks and repairs a sample and adds its row. Raises InvalidImage or InvalidSample."""
        changes: dict[str, Any] = {}
        if self.unit.licence != "unknown" and sample.licence in ("", self.reader.card.licence):
            # A record's own licence overrides the source's, which overrides that of the published dataset.
            changes["licence"] = self.unit.licence
        images = [self._checked(image) for image in sample.images]
        if images:
            changes |= self._image_changes(sample, images)
        if self.unit.settings.text == "original":
            sample = normalize_sample(sample, self.reader.card.normalized_roles)
        sample = sample.revise(**changes) if changes else sample
        check_sample(sample, self.settings)
        dedup_fields = {
            "image_sha256": images[0].sha256 if images else None,
            "names": list(sample.names),
            "key": str(sample.extra.get("key", "")),
        }
        self.rows.add(sample.to_row() | dedup_fields, sum(len(image.data) for image in sample.images))
        for image in images:
            self._add_image(image)

    def _checked(self, image: SampleImage) -> CheckedImage:
        checked = self.check_image(image.sha256, image.data)
        if isinstance(checked, InvalidImage):
            raise checked
        return checked

    def _add_image(self, image: CheckedImage) -> None:
        if image.sha256 not in self.seen_images:
            self.seen_images.add(image.sha256)
            self.repairs.update(image.repairs)
            self.images.add({"sha256": image.sha256, "thumbnail": image.thumbnail}, len(image.thumbnail))

    def _image_changes(self, sample: Sample, checked: Sequence[CheckedImage]) -> dict[str, Any]:
        """Returns the fields of the sample that the checked images change: images and boxes."""
        images = tuple(SampleImage(one.data, one.width, one.height, one.sha256) for one in checked)
        numbers = sample.box_images or (0,) * len(sample.boxes)
        boxes = tuple(self._fit_box(box, checked[at]) for box, at in zip(sample.boxes, numbers, strict=True))
        if boxes != sample.boxes and all(image.orientation == 1 for image in checked):
            self.repairs["box clipped"] += 1
        changes: dict[str, Any] = {"images": images} if images != sample.images else {}
        return changes | ({"boxes": boxes} if boxes != sample.boxes else {})

    def _fit_box(self, box: Box, image: CheckedImage) -> Box:
        oriented = box if image.orientation == 1 else orient_box(box, image.orientation, image.stored_size)
        return fit_box(oriented, image.width, image.height, self.settings)
