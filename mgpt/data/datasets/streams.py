"""Rows out of files without holding the file: JSON, JSON Lines, tar shards, Parquet; and pickles that cannot run code."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn, cast

import pyarrow.parquet as parquet

CHUNK = 1 << 20
LONGEST = (
    64 << 20
)  # characters of one JSON record, bytes of one member of a shard; beyond it the file is taken for broken
SPACE = " \t\r\n"
ENDS = SPACE + ",:]}"
DECODER = json.JSONDecoder()


class JsonText:
    """A JSON document read from a binary file piece by piece. Invalid UTF-8 travels on as lone surrogates, so that only its own record
    is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self.text = ""
        self.place = 0
        self.ended = False

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in SPACE:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._read_on()

    def take(self, expected: str) -> str:
        """Consumes one character, which must be among `expected`. Raises ValueError."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(
                f"expected one of {expected!r} but the file {'ends' if not found else f'goes on with {found!r}'}"
            )
        self.place += 1
        return found

    def value(self) -> Any:
        """Consumes one value. Raises ValueError where there is none."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
            except RecursionError as error:
                raise ValueError("a record cannot be read as JSON: it is nested too deeply") from error
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.place > LONGEST:
                    raise ValueError(f"a record cannot be read as JSON: {error}") from error
            else:
                # "1" may be the start of "1.5" or "12", as long as nothing that ends a value was read behind it.
                if self.ended or (end < len(self.text) and self.text[end] in ENDS):
                    self.place = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        data = self.file.read(CHUNK)
        self.ended = not data
        self.text = self.text[self.place :] + self.decoder.decode(data, final=self.ended)
        self.place = 0


def json_rows(file: IO[bytes], key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON file, one at a time: of the top-level list (keyed by their number) or object (by its keys), or of those under `key`.

    Raises:
        ValueError: the file is not JSON from some place on, or has no `key`; the rows before were given.
    """
    text = JsonText(file)
    if key is not None:
        _enter(text, key)
    if text.peek() == "{":
        yield from _members(text)
    else:
        yield from _elements(text)


def _elements(text: JsonText) -> Iterator[tuple[str, Any]]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    number = 0
    while True:
        yield str(number), text.value()
        number += 1
        if text.take(",]") == "]":
            return


def _members(text: JsonText) -> Iterator[tuple[str, Any]]:
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return
    while True:
        name = str(text.value())
        text.take(":")
        yield name, text.value()
        if text.take(",}") == "}":
            return


def _enter(text: JsonText, key: str) -> None:
    text.take("{")
    while text.peek() != "}":
        name = text.value()
        text.take(":")
        if name == key:
            return
        if text.peek() == "[":
            for _ in _elements(text):
                pass
        else:
            text.value()
        if text.take(",}") == "}":
            break
    raise ValueError(f"the file has no {key!r}")


def jsonl_rows(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON Lines file, keyed by line number from 1; empty lines are passed over. A line that is no JSON gives the `ValueError`
    itself as its row."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield str(number), json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            yield str(number), ValueError(f"line {number} is not JSON in UTF-8: {error}")


def json_or_lines(file: IO[bytes], name: str, key: str | None = None) -> Iterator[tuple[str, Any]]:
    """Rows of a `.jsonl` file, or of a `.json` one."""
    return jsonl_rows(file) if name.endswith(".jsonl") else json_rows(file, key)


def tar_rows(file: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a webdataset shard: neighbouring members with one name up to the first dot, as `{extension: bytes}`. Links and folders
    are left out; gzip is opened.

    Raises:
        ValueError: the shard breaks off or is no tar file; the complete samples before were given.
    """
    current, members = "", dict[str, bytes]()
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    watched = _Tail(cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if compressed else file)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r|") as shard:
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
        complete = watched.is_complete()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the shard breaks off: {error}") from error
    if not complete:
        raise ValueError(
            f"the shard breaks off after {current}: the two empty blocks that end a tar file are not there"
        )
    if members:
        yield current, members


class _Tail:
    """A file that remembers its last bytes: Python takes a tar file cut at the head of a member for one that ends there."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.last = (self.last + data)[-512:]
        return data

    def is_complete(self) -> bool:
        """Whether the file ends in an empty block; reads what is left of it."""
        while self.read(CHUNK):
            pass
        return self.last == bytes(512)


def _member(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = shard.extractfile(member)
    assert content is not None
    data = content.read(min(member.size, LONGEST))
    if len(data) < min(member.size, LONGEST):
        raise tarfile.ReadError(f"{member.name} is cut short")
    return data


def parquet_rows(file: IO[bytes], batch: int = 64) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file, keyed by their number, a few at a time in memory.

    Raises:
        ValueError: it is no Parquet file, or breaks off.
    """
    number = 0
    try:
        for rows in parquet.ParquetFile(file).iter_batches(batch_size=batch):
            for row in rows.to_pylist():
                yield str(number), row
                number += 1
    except OSError as error:
        if error.errno is not None:  # the disk's or the network's fault, not the file's
            raise
        raise ValueError(f"the Parquet file is damaged: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Knows numbers, texts, lists, dicts, tuples and sets; refuses every class and function, hence all code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(
            f"the file wants to load {module}.{name}; a data file needs no code, so it is not opened"
        )


def plain_pickle(data: bytes) -> Any:
    """The content of a pickle of plain values (Python 2's too). Nothing of it can run.

    Raises:
        ValueError: it is no pickle, or refers to a class or function.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise ValueError(f"not a pickle of plain values: {type(error).__name__}: {error}") from error
