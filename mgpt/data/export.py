"""Curated samples in formats that other tools read: Parquet, webdataset tars, or JSON Lines with image files.

A shard becomes one file, written atomically, with a few samples in memory at a time.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.data.shards import SUFFIX, scan_samples
from mgpt.data.types import IMAGE_BYTES, SCHEMA, Sample
from mgpt.storage import Entry, write_atomic
from mgpt.storage.filesystem import write_local

_ROW_GROUP = 64
_SIGNATURES = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def export_shards(
    entries: Sequence[Entry], out: Path, form: str, report: Callable[[str], None] = lambda line: None
) -> int:
    """Writes curated shards below a folder in a form of `FORMS`, and returns the number of samples.

    Raises:
        ValueError: the form is unknown, or there are no shards.
        FileNotFoundError: a shard is gone.
    """
    if form not in FORMS:
        raise ValueError(f"format {form!r} is not known; use one of {', '.join(FORMS)}")
    if not entries:
        raise ValueError("no curated shards of these datasets and splits; see results/curate/manifest.json")
    suffix, write = FORMS[form]
    for number, entry in enumerate(entries, 1):
        path = out / f"{entry.name.removesuffix(SUFFIX)}{suffix}"
        with write_local(path) as file:
            write(file, scan_samples(entry.uri), path)
        report(f"{number} of {len(entries)} files: {path}")
    return sum(int(entry.meta["rows"]) for entry in entries)


def _write_parquet(file: IO[bytes], samples: Iterator[Sample], _: Path) -> None:
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for sample in samples:
            rows.append(sample.to_row())
            if len(rows) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def _write_tar(file: IO[bytes], samples: Iterator[Sample], _: Path) -> None:
    """Writes webdataset's layout: the files of a sample have its id as their name, and one extension each."""
    with tarfile.open(fileobj=file, mode="w") as tar:
        for sample in samples:
            names = [f"{number}.{_extension(image.data)}" for number, image in enumerate(sample.images)]
            content = json.dumps(_row(sample) | {"images": names}).encode()
            for name, data in [("json", content), *zip(names, (one.data for one in sample.images), strict=True)]:
                member = tarfile.TarInfo(f"{sample.id}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_jsonl(file: IO[bytes], samples: Iterator[Sample], path: Path) -> None:
    """Writes a line a sample; images go to files named by their sha256, in `images/` next to the list."""
    for sample in samples:
        names = [f"images/{image.sha256}.{_extension(image.data)}" for image in sample.images]
        for name, image in zip(names, sample.images, strict=True):
            if not (path.parent / name).exists():
                write_atomic(path.parent / name, image.data)
        file.write(json.dumps(_row(sample) | {"images": names}, ensure_ascii=False).encode() + b"\n")


def _row(sample: Sample) -> dict[str, Any]:
    row = sample.to_row()
    sizes = [[image["width"], image["height"]] for image in row["images"]]
    del row[IMAGE_BYTES]
    return row | {"sizes": sizes, "extra": dict(sample.extra)}


def _extension(image: bytes) -> str:
    return next((name for signature, name in _SIGNATURES.items() if image.startswith(signature)), "bin")


FORMS: dict[str, tuple[str, Callable[[IO[bytes], Iterator[Sample], Path], None]]] = {
    "parquet": (".parquet", _write_parquet),
    "webdataset": (".tar", _write_tar),
    "jsonl": (".jsonl", _write_jsonl),
}
