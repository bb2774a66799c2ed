"""One file of a dataset, record by record: mended, judged, and written as rows, fingerprints and losses."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings
from mgpt.curation.image_checks import BadImage, Checked, check_image, turn_box
from mgpt.curation.plan import Unit
from mgpt.curation.rules import BadSample, check_sample, fit_boxes
from mgpt.data.datasets import READERS, RejectedRecord
from mgpt.data.datasets.base import DATA_ERRORS
from mgpt.data.text_normalization import normalize_sample
from mgpt.data.types import SCHEMA, Sample
from mgpt.storage import Store

# A sample and what only curation asks of it: which image it shows, by its bytes and by the names that other datasets know it by, and the
# key under which an evaluation reports it.
_JUDGED = [
    pa.field("image_sha256", pa.string()),
    pa.field("names", pa.list_(pa.string())),
    pa.field("key", pa.string()),
]
ROWS = pa.schema([*SCHEMA, *_JUDGED])
IMAGES = pa.schema([("sha256", pa.string()), ("thumbnail", pa.binary())])
LOST = pa.schema([(name, pa.string()) for name in ("dataset", "split", "source", "reason", "detail", "step")])
# What bad content makes code raise, and a file that is not there. Not among them: a server that is down or a full disk, which are nobody's
# record's fault. They end the run, and the next goes on from here.
_BROKEN = (
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
_FILE_ERRORS = (*_BROKEN, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_GROUP_BYTES = 16 << 20  # a row group is written when this many image bytes wait
_GROUP_ROWS = 1_000


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How tables with images are written: encoded images are not compressed again, and neighbouring rows that share one store it once
    (a large dictionary page)."""
    encoded = ("image", "thumbnail")
    compression = {name: "NONE" if name in encoded else "ZSTD" for name in _columns(schema)}
    statistics = [name for name in _columns(schema) if name not in encoded]
    return {"compression": compression, "dictionary_pagesize_limit": _GROUP_BYTES * 4, "write_statistics": statistics}


def _columns(schema: pa.Schema) -> list[str]:
    """Paths of the leaf columns, as Parquet names them (`turns.list.element.text`)."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    written = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.schema
    return [written.column(place).path for place in range(len(written))]


class _Table:
    """A Parquet file written in groups, so that memory does not grow with the number of rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema, self.waiting = schema, 0
        self.rows: list[dict[str, Any]] = []
        self.writer = pq.ParquetWriter(path, schema, **parquet_options(schema))

    def add(self, row: dict[str, Any], size: int = 0) -> None:
        self.rows.append(row)
        self.waiting += size
        if len(self.rows) >= _GROUP_ROWS or self.waiting >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows, self.waiting = [], 0

    def close(self) -> None:
        self.flush()
        self.writer.close()


def check_part(unit: Unit, settings: CurateSettings, store: Store, folder: str) -> dict[str, Any]:
    """Judges every record of a unit and leaves `rows`, `images` and `lost` tables below `folder`; gives their counts.

    What an earlier, interrupted run finished is not done again: the counts are written last, so they stand for the whole.
    """
    done = f"{folder}/{unit.name}.json"
    if store.exists(done):
        return json.loads(store.read(done))
    with tempfile.TemporaryDirectory() as scratch:
        counts = _Judge(unit, settings, Path(scratch)).run()
        for name in ("rows", "images", "lost"):
            store.put_file(Path(scratch) / f"{name}.parquet", f"{folder}/{unit.name}.{name}.parquet")
    store.write(done, json.dumps(counts, sort_keys=True).encode())
    return counts


class _Judge:
    def __init__(self, unit: Unit, settings: CurateSettings, scratch: Path) -> None:
        self.unit, self.settings = unit, settings
        self.reader = READERS[unit.settings.reader].with_name(unit.dataset)
        self.rows = _Table(scratch / "rows.parquet", ROWS)
        self.images = _Table(scratch / "images.parquet", IMAGES)
        self.lost = _Table(scratch / "lost.parquet", LOST)
        self.mended: Counter[str] = Counter()
        self.seen_images: set[str] = set()
        self.check = lru_cache(maxsize=64)(self._check_image)

    def run(self) -> dict[str, Any]:
        records = kept = 0
        for record in self._records():
            records += 1
            if isinstance(record, RejectedRecord):
                self._lose(record.split, record.source, record.reason, record.detail, "read")
                continue
            try:
                self._keep(record)
                kept += 1
            except (BadImage, BadSample) as error:
                self._lose(record.split, record.source, error.reason, str(error), "check")
        for table in (self.rows, self.images, self.lost):
            table.close()
        return {"records": records, "kept": kept, "lost": records - kept, "mended": dict(sorted(self.mended.items()))}

    def _records(self) -> Iterator[Sample | RejectedRecord]:
        try:
            yield from self.reader.records([self.unit.part])
        except (
            _FILE_ERRORS
        ) as error:  # a reader must not raise for what is in a file; if it does, the rest of the file is accounted for
            yield RejectedRecord(
                self.unit.dataset,
                self.unit.part.split,
                self.unit.part.path,
                "unreadable file",
                f"{type(error).__name__}: {error}",
            )

    def _lose(self, split: str, source: str, reason: str, detail: str, step: str) -> None:
        # A damaged file may hold anything: the table takes only text that can be written.
        clean = [text.encode("utf-8", "replace").decode()[:300] for text in (source, detail)]
        self.lost.add(
            {
                "dataset": self.unit.dataset,
                "split": split,
                "source": clean[0],
                "reason": reason,
                "detail": clean[1],
                "step": step,
            }
        )

    def _check_image(self, digest: str, data: bytes) -> Checked | BadImage:
        try:
            return check_image(data, self.settings)
        except BadImage as error:
            return error

    def _keep(self, sample: Sample) -> None:
        changes: dict[str, Any] = {}
        if self.unit.licence != "unknown" and sample.licence in ("", self.reader.card.licence):
            changes["licence"] = (
                self.unit.licence
            )  # a record's own licence stands above the source's, and that above the published card's
        checked: Checked | None = None
        if sample.image is not None:
            judged = self.check(hashlib.sha256(sample.image).hexdigest(), sample.image)
            if isinstance(judged, BadImage):
                raise judged
            checked = judged
            changes |= self._image_changes(sample, checked)
        if self.unit.settings.text == "original":
            sample = normalize_sample(sample, self.reader.card.normalized_roles)
        sample = sample.revise(**changes) if changes else sample
        check_sample(sample, self.settings)
        judged_by = {
            "image_sha256": checked.sha256 if checked else None,
            "names": list(sample.names),
            "key": str(sample.extra.get("key", "")),
        }
        self.rows.add(sample.to_row() | judged_by, len(sample.image or b""))
        if checked:
            self._remember(checked)

    def _image_changes(self, sample: Sample, checked: Checked) -> dict[str, Any]:
        boxes = sample.boxes
        if checked.orientation != 1:
            boxes = tuple(turn_box(box, checked.orientation, checked.stored_size) for box in boxes)
        boxes = fit_boxes(boxes, checked.width, checked.height, self.settings)
        if boxes != sample.boxes and checked.orientation == 1:
            self.mended["box clipped"] += 1
        changes: dict[str, Any] = {"image": checked.data} if checked.mended else {}
        if boxes != sample.boxes:
            changes["boxes"] = boxes
        if (sample.width, sample.height) != (checked.width, checked.height):
            changes |= {"width": checked.width, "height": checked.height}
        return changes

    def _remember(self, checked: Checked) -> None:
        if checked.sha256 not in self.seen_images:
            self.seen_images.add(checked.sha256)
            self.mended.update(checked.mended)
            self.images.add({"sha256": checked.sha256, "thumbnail": checked.thumbnail}, len(checked.thumbnail))
