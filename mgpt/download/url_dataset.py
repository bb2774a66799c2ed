"""Lists of image addresses (LAION, Conceptual Captions, SBU) as webdataset shards, with every lost address counted.

Our own fetcher, not img2dataset: version 1.47 needs pandas < 3, webdataset < 1, opencv, albumentations and wandb
beside the pins of this
project, stores images padded to squares of one size (which version 2 of the model would enlarge again), and
restarts a broken shard.
The shards have img2dataset's layout, so shards made by it are read the same way.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from mgpt.data.archives import write_tar
from mgpt.data.datasets.streams import json_rows
from mgpt.download.fetch import FetchError, Mirror, fetch
from mgpt.download.mirrors import locate
from mgpt.download.plan import File
from mgpt.download.source import SourceFetch, Status

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff"}


@dataclass(frozen=True)
class Row:
    """An address and its caption; `key` is its number in the list, nine digits or more."""

    key: str
    url: str
    caption: str


def fetch_url_lists(source: SourceFetch, files: Sequence[File], spool: Path) -> list[Status]:
    """Fetches every address of every list into shards `LIST/NNNNN.tar`; gives a status a shard.

    A shard with losses is opened again by the next run, which asks for the lost addresses only.

    Raises:
        ValueError: a list has no `url` and `caption`, or is of a kind that is not read.
        FetchError: a list itself cannot be had.
    """
    found = []
    for file in files:
        path = spool / "lists" / hashlib.sha256(file.name.encode()).hexdigest()[:24]
        if not path.exists():
            fetch(file.mirrors, path, source.patience, source.source.sha256.get(file.name))
        rows = read_list(path, file.name)
        shard = 0
        while piece := list(islice(rows, source.settings.images_per_shard)):
            found.append(_shard(source, f"{file.name.rsplit('.', 1)[0]}/{shard:05d}.tar", piece, spool))
            shard += 1
    return found


def read_list(path: Path, name: str) -> Iterator[Row]:
    """Rows of a `.json` list, `.jsonl`, `.tsv`, `.csv` or `.parquet` file with columns `url` and `caption`."""
    for number, record in enumerate(_records(path, name)):
        try:
            yield Row(f"{number:09d}", str(record["url"]), str(record["caption"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{name}: row {number} has no url and caption; an address list needs both") from error


def _records(path: Path, name: str) -> Iterator[dict[str, str]]:
    if name.endswith(".parquet"):
        for batch in pq.ParquetFile(path).iter_batches(columns=["url", "caption"]):
            yield from batch.to_pylist()
    elif name.endswith((".tsv", ".csv")):
        with open(path, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ",")
    elif name.endswith(".jsonl"):
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
    elif name.endswith(".json"):
        with open(path, "rb") as file:
            yield from (record for _, record in json_rows(file))
    else:
        raise ValueError(f"{name}: an address list is .json, .jsonl, .tsv, .csv or .parquet")


def _shard(source: SourceFetch, name: str, rows: Sequence[Row], spool: Path) -> Status:
    stamp = hashlib.sha256(json.dumps([[row.key, row.url, row.caption] for row in rows]).encode()).hexdigest()
    if done := source.recall(name, stamp):
        return done
    uri = source.store.uri("sources", source.key, name)
    have = _earlier(source, uri, rows)
    place = spool / hashlib.sha256(name.encode()).hexdigest()[:24]
    with ThreadPoolExecutor(source.settings.parallel) as pool:
        results = list(pool.map(lambda row: have.get(row.key) or _image(source, row, place), rows))
    lost = [(row, reason) for row, reason in zip(rows, results, strict=True) if isinstance(reason, str)]
    members = (
        member
        for row, data in zip(rows, results, strict=True)
        if isinstance(data, bytes)
        for member in _members(row, data)
    )
    with source.store.open(uri, "wb") as target:
        write_tar(target, members)
    lines = "".join(
        json.dumps({"key": row.key, "url": row.url, "reason": reason}, sort_keys=True) + "\n" for row, reason in lost
    )
    source.store.write(uri.removesuffix(".tar") + ".lost.jsonl", lines.encode())
    entry = source.store.entry(name, uri)
    reasons = "; ".join(reason for _, reason in lost[:3])
    status = source.done(name, stamp, len(rows), len(lost), uri, entry.size, entry.sha256, reasons)
    source.remember(status)
    shutil.rmtree(place, ignore_errors=True)
    return status


def _image(source: SourceFetch, row: Row, place: Path) -> bytes | str:
    """The image's bytes, or why there are none."""
    path = place / row.key
    try:
        if not path.exists():
            location = locate(row.url, ("*",))
            fetch([Mirror(location, location.list()[0])], path, source.patience)
        data = path.read_bytes()
    except (FetchError, OSError, IndexError) as error:
        return str(error)
    return data if extension(data) else f"{row.url}: not an image, starts with {data[:12]!r}"


def extension(data: bytes) -> str:
    """The file extension that the first bytes of an image ask for; empty for what is no image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), "")


def _members(row: Row, data: bytes) -> Iterator[tuple[str, bytes]]:
    facts = {"caption": row.caption, "key": row.key, "sha256": hashlib.sha256(data).hexdigest(), "url": row.url}
    yield f"{row.key}.{extension(data)}", data
    yield f"{row.key}.json", json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
    yield f"{row.key}.txt", row.caption.encode()


def _earlier(source: SourceFetch, uri: str, rows: Sequence[Row]) -> dict[str, bytes]:
    """Images by key of an earlier, incomplete form of the shard, where the key still means the same address."""
    if not source.store.exists(uri):
        return {}
    addresses = {row.key: row.url for row in rows}
    images: dict[str, bytes] = {}
    same: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(source.store.read(uri))) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            data = tar.extractfile(member)
            if data is None or kind == "txt":
                continue
            if kind == "json":
                same |= {key} if json.loads(data.read())["url"] == addresses.get(key) else set()
            else:
                images[key] = data.read()
    return {key: data for key, data in images.items() if key in same}
