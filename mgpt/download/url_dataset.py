"""Download of image URL lists (LAION, Conceptual Captions, SBU) as webdataset shards; every failed URL is counted.

The shards have img2dataset's layout, so that shards of either are read by the same readers. See
docs/decisions/url-lists.md for the reasons against img2dataset itself.
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

from mgpt.data.datasets.streams import json_rows
from mgpt.download.fetch import FetchError, Mirror, fetch
from mgpt.download.mirrors import locate
from mgpt.download.plan import SourceFile
from mgpt.download.source import ItemStatus, SourceFetcher, name_hash

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff"}


@dataclass(frozen=True)
class UrlRow:
    """An image URL and its caption; `key` is the number of its row in the list, with at least nine digits."""

    key: str
    url: str
    caption: str


def fetch_url_lists(fetcher: SourceFetcher, files: Sequence[SourceFile], spool: Path) -> list[ItemStatus]:
    """Fetches the images of every list into shards `LIST/NNNNN.tar`, and returns the status of each shard.

    For a shard with failures, the next run requests only the failed URLs.

    Raises:
        ValueError: a list has no `url` and `caption`, or is of an unknown format.
        FetchError: a list itself cannot be fetched.
    """
    statuses = []
    for file in files:
        path = spool / "lists" / name_hash(file.name)
        if not path.exists():
            fetch(file.mirrors, path, fetcher.settings, fetcher.source.sha256.get(file.name))
        rows = read_list(path, file.name)
        shard = 0
        while shard_rows := list(islice(rows, fetcher.settings.images_per_shard)):
            name = f"{file.name.rsplit('.', 1)[0]}/{shard:05d}.tar"
            statuses.append(_fetch_shard(fetcher, name, shard_rows, spool))
            shard += 1
    return statuses


def read_list(path: Path, name: str) -> Iterator[UrlRow]:
    """Yields the rows of a `.json`, `.jsonl`, `.tsv`, `.csv` or `.parquet` file with columns `url` and `caption`."""
    for number, record in enumerate(_records(path, name)):
        try:
            yield UrlRow(f"{number:09d}", str(record["url"]), str(record["caption"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{name}: row {number} has no url and caption; a URL list needs both") from error


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
        raise ValueError(f"{name}: a URL list is .json, .jsonl, .tsv, .csv or .parquet")


def _fetch_shard(fetcher: SourceFetcher, name: str, rows: Sequence[UrlRow], spool: Path) -> ItemStatus:
    stamp = hashlib.sha256(json.dumps([[row.key, row.url, row.caption] for row in rows]).encode()).hexdigest()
    if done := fetcher.saved_status(name, stamp):
        return done
    uri = fetcher.store.uri("sources", fetcher.key, name)
    stored = _stored_images(fetcher, uri, rows)
    folder = spool / name_hash(name)
    with ThreadPoolExecutor(fetcher.settings.parallel) as pool:
        results = list(pool.map(lambda row: stored.get(row.key) or _fetch_image(fetcher, row, folder), rows))
    images = [(row, data) for row, data in zip(rows, results, strict=True) if isinstance(data, bytes)]
    failures = [(row, error) for row, error in zip(rows, results, strict=True) if isinstance(error, str)]
    members = (member for row, data in images for member in _members(row, data))
    status = fetcher.store_tar(name, stamp, members, len(rows), [error for _, error in failures])
    lines = [json.dumps({"key": row.key, "url": row.url, "reason": error}, sort_keys=True) for row, error in failures]
    fetcher.store.write(uri.removesuffix(".tar") + ".lost.jsonl", "".join(line + "\n" for line in lines).encode())
    fetcher.save_status(status)
    shutil.rmtree(folder, ignore_errors=True)
    return status


def _fetch_image(fetcher: SourceFetcher, row: UrlRow, folder: Path) -> bytes | str:
    """Returns the image's bytes, or an error message."""
    path = folder / row.key
    try:
        if not path.exists():
            location = locate(row.url, ("*",))
            fetch([Mirror(location, location.list()[0])], path, fetcher.settings)
        data = path.read_bytes()
    except (FetchError, OSError, IndexError) as error:
        return str(error)
    return data if image_extension(data) else f"{row.url}: not an image, starts with {data[:12]!r}"


def image_extension(data: bytes) -> str:
    """Returns the file extension of the format that the first bytes show, or an empty string if it is no image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), "")


def _members(row: UrlRow, data: bytes) -> Iterator[tuple[str, bytes]]:
    record = {"caption": row.caption, "key": row.key, "sha256": hashlib.sha256(data).hexdigest(), "url": row.url}
    yield f"{row.key}.{image_extension(data)}", data
    yield f"{row.key}.json", json.dumps(record, ensure_ascii=False, sort_keys=True).encode()
    yield f"{row.key}.txt", row.caption.encode()


def _stored_images(fetcher: SourceFetcher, uri: str, rows: Sequence[UrlRow]) -> dict[str, bytes]:
    """Returns the images of an earlier, incomplete shard by key, except those whose key now has another URL."""
    if not fetcher.store.exists(uri):
        return {}
    urls = {row.key: row.url for row in rows}
    images: dict[str, bytes] = {}
    unchanged: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(fetcher.store.read(uri))) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            data = tar.extractfile(member)
            if data is None or kind == "txt":
                continue
            if kind != "json":
                images[key] = data.read()
            elif json.loads(data.read())["url"] == urls.get(key):
                unchanged.add(key)
    return {key: data for key, data in images.items() if key in unchanged}
