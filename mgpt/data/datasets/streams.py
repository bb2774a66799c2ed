"""Rows of JSON, JSON Lines, webdataset tar and Parquet files in constant memory; unpickling that runs no code."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import pickle
import re
import tarfile
import zlib
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn, cast

import ijson
import pyarrow.parquet as parquet

from mgpt.data.types import NOT_TEXT

CHUNK = 1 << 20
JSON_CHUNK = (
    1 << 12
)  # bytes that ijson gets at a time; small, so that MAX_DEPTH is checked before ijson has gone far beyond it
MAX_RECORD = 64 << 20  # bytes of one JSON record or of one member of a shard; a longer one marks a damaged file
MAX_DEPTH = 2_000
# A surrogate pair (kept), or half of one; behind any number of escaped backslashes.
SURROGATE_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w)|\\u[dD][89a-fA-F]\w\w)")


def _replace_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return NOT_TEXT, error.start + 1


codecs.register_error("mgpt-not-text", _replace_byte)


class JsonInput:
    """A JSON file in the form that ijson reads safely.

    ijson stops at a byte order mark and at the first byte that is not UTF-8, writes "?" for half of a surrogate pair,
    and needs memory quadratic in the depth of nesting. Here the mark is removed, invalid text becomes `NOT_TEXT`, and
    depth and record length are limited.
    """

    def __init__(self, file: IO[bytes], limit_record: bool = True) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="mgpt-not-text")
        self.limit_record = limit_record
        self.ahead = b""
        self.offset = 0
        self.record_bytes = 0
        self.depth = 0

    def first_character(self) -> str:
        """Returns the first character that is not white space without consuming it; "" for an empty file."""
        data = b""
        while not data.strip() and (more := self.read()):
            data += more
        self.ahead = data
        return data.strip()[:1].decode("ascii", "replace")

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes, b"" at the end and for a size of 0, by which ijson tells bytes from text; another
        size is ignored.

        Raises:
            ValueError: a record is longer than `MAX_RECORD` or nested deeper than `MAX_DEPTH`.
        """
        if size == 0:
            return b""
        if self.ahead:
            data, self.ahead = self.ahead, b""
            return data
        data = self.file.read(JSON_CHUNK)
        while b"\\" in data[-12:] and (more := self.file.read(JSON_CHUNK)):  # an escape must not be cut in two
            data += more
        self._check_limits(data)
        text = self.decoder.decode(data, final=not data)
        if "\\ud" in text or "\\uD" in text:
            text = SURROGATE_ESCAPE.sub(lambda match: match[1] + (match[2] or NOT_TEXT), text)
        # A chunk may hold no more than the beginning of one character; b"" would end the file.
        return text.encode() or (self.read() if data else b"")

    def _check_limits(self, data: bytes) -> None:
        self.offset += len(data)
        self.record_bytes += len(data)
        if self.limit_record and self.record_bytes > MAX_RECORD + JSON_CHUNK:
            raise ValueError(f"the record that ends behind byte {self.offset} is longer than {MAX_RECORD} bytes")
        opened = data.count(b"[") + data.count(b"{") - data.count(b"]") - data.count(b"}")
        # Brackets inside strings count too; they cancel out over a few chunks, real nesting only grows.
        self.depth = self.depth + opened if opened > 0 else 0
        if self.depth > MAX_DEPTH:
            raise ValueError(f"near byte {self.offset} the file is nested more than {MAX_DEPTH} levels deep")

    def end_record(self) -> None:
        """Starts counting the bytes and levels of the next record."""
        self.record_bytes = self.depth = 0


def json_rows(file: IO[bytes], key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a JSON file one at a time: of its list (keyed by their number) or object (by its keys), at the
    top level or under `key`. NaN and Infinity, which are not JSON, are rejected.

    Raises:
        ValueError: the file is not valid JSON, or has no `key`; the rows before the damage were given.
    """
    count = 0
    try:
        for row in _parse(file, key, use_float=True):
            yield row
            count += 1
    except ijson.JSONError:
        # In its fast mode yajl rejects integers beyond 64 bits. Reading on without it shows whether the file is
        # damaged.
        file.seek(0)
        for name, value in islice(_parse(file, key, use_float=False), count, None):
            yield name, _plain_numbers(value)


def _parse(file: IO[bytes], key: str | None, use_float: bool) -> Iterator[tuple[str, Any]]:
    source = JsonInput(
        file, limit_record=key is None
    )  # under a key, other parts of the file lie before and after the rows
    first = source.first_character()
    if first not in ("[", "{") or (key is not None and first == "["):
        expected = "a list or an object" if key is None else f"an object with {key!r}"
        raise ValueError(
            f"not valid JSON: {expected} was expected, but the file {f'starts with {first!r}' if first else 'is empty'}"
        )
    try:
        if key is not None:
            yield from _rows_under(file, source, key, use_float)
        else:
            yield from _elements(source, "item", use_float) if first == "[" else _members(source, "", use_float)
    except ijson.JSONError as error:
        if use_float:
            raise
        problem = str(error).removeprefix("b'").replace("\\n", "\n").splitlines()[0]
        raise ValueError(f"not valid JSON near byte {source.offset}: {problem}") from error


def _elements(source: JsonInput, prefix: str, use_float: bool) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(ijson.items(source, prefix, use_float=use_float)):
        source.end_record()
        yield str(number), row


def _members(source: JsonInput, prefix: str, use_float: bool) -> Iterator[tuple[str, Any]]:
    for name, row in ijson.kvitems(source, prefix, use_float=use_float):
        source.end_record()
        yield name, row


def _rows_under(file: IO[bytes], source: JsonInput, key: str, use_float: bool) -> Iterator[tuple[str, Any]]:
    empty = True
    for row in _elements(source, f"{key}.item", use_float):
        empty = False
        yield row
    if empty:  # an empty list, an object, or no such key
        file.seek(0)
        events = ijson.parse(JsonInput(file, limit_record=False))
        kind = next((event for prefix, event, _ in events if prefix == key and event.startswith("start_")), None)
        if kind is None:
            raise ValueError(f"the file has no {key!r}, or it is neither a list nor an object")
        if kind == "start_map":
            file.seek(0)
            yield from _members(JsonInput(file, limit_record=False), key, use_float)


def _plain_numbers(value: Any) -> Any:
    """Returns the value with `float` in place of the `Decimal` that ijson gives for a number with a fraction."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return {name: _plain_numbers(item) for name, item in value.items()} if isinstance(value, dict) else value


def jsonl_rows(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a JSON Lines file, keyed by line number from 1; empty lines are skipped.

    A line that is not JSON gives a `ValueError` as its row.
    """
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield str(number), json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            yield str(number), ValueError(f"line {number} is not JSON in UTF-8: {error}")


def json_or_lines(file: IO[bytes], name: str, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a `.jsonl` or `.json` file."""
    return jsonl_rows(file) if name.endswith(".jsonl") else json_rows(file, key)


def tar_rows(file: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields the samples of a webdataset shard as `{extension: bytes}`, plain or gzipped.

    A sample is a run of members with the same name up to the first dot. Links and folders are skipped.

    Raises:
        ValueError: the shard is truncated or not a tar file; the complete samples before the damage were given.
    """
    current, members = "", dict[str, bytes]()
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = _TailReader(cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if compressed else file)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, extension = path.name.partition(".")
                key = str(path.with_name(stem))
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                members[extension.lower()] = _member(shard, member)
        complete = stream.ends_with_empty_block()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the shard is truncated or damaged: {error}") from error
    if not complete:
        raise ValueError(f"the shard is truncated after {current}: the empty blocks that end a tar file are missing")
    if members:
        yield current, members


class _TailReader:
    """A file that remembers its last bytes, since tarfile accepts a file that was cut at the header of a member."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.last = (self.last + data)[-512:]
        return data

    def ends_with_empty_block(self) -> bool:
        """Reads the rest of the file and returns true if it ends in an empty block."""
        while self.read(CHUNK):
            pass
        return self.last == bytes(512)


def _member(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = shard.extractfile(member)
    assert content is not None
    data = content.read(min(member.size, MAX_RECORD))
    if len(data) < min(member.size, MAX_RECORD):
        raise tarfile.ReadError(f"{member.name} is truncated")
    return data


def parquet_rows(file: IO[bytes], batch: int = 64) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a Parquet file, keyed by their number; `batch` rows are in memory at a time.

    Raises:
        ValueError: the file is damaged or not a Parquet file.
    """
    number = 0
    try:
        for rows in parquet.ParquetFile(file).iter_batches(batch_size=batch):
            for row in rows.to_pylist():
                yield str(number), row
                number += 1
    except OSError as error:
        if error.errno is not None:  # a failure of disk or network, not of the file
            raise
        raise ValueError(f"the Parquet file is damaged: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Loads numbers, texts, lists, dicts, tuples and sets; rejects every class and function, and hence all code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"the file refers to {module}.{name}; only plain values are loaded, since code in a pickle would run"
        )


def plain_pickle(data: bytes) -> Any:
    """Loads a pickle of plain values, of Python 2 or 3, without running code.

    Raises:
        ValueError: the data is not a pickle, or refers to a class or function.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises exceptions of nearly any type
        raise ValueError(f"not a pickle of plain values: {type(error).__name__}: {error}") from error
