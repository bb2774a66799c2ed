"""Every byte that enters or leaves: a local folder or an `s3://` prefix behind one small interface.

A write is whole or absent: a reader never sees half a file, whatever is killed. Files that other stages rely on are named by a `Manifest`
with their size and sha256, so that one altered byte is found.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mgpt.storage.types import Entry

_CHUNK = 1 << 20  # bytes read at a time when hashing or copying


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object on an S3-compatible server (else it is a local path)."""
    return uri.startswith("s3://")


@lru_cache(maxsize=1)
def _s3(process: int) -> Any:
    # One client a process: an asyncio client does not survive a fork.
    import s3fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)


def _remote() -> Any:
    return _s3(os.getpid())


def sha256_bytes(data: bytes) -> str:
    """The sha256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The sha256 of a local file, in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a local file so that a reader sees the old content or the new, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Store:
    """Files under one root: a local folder or `s3://bucket/prefix`.

    Credentials and endpoint of an S3-compatible server come from the usual `AWS_*` variables, `AWS_ENDPOINT_URL` included. Picklable;
    workers make their own client. Methods take full URIs, made by `uri`.
    """

    root: str

    def __post_init__(self) -> None:
        if is_remote(self.root):
            if not self.root.removeprefix("s3://").strip("/"):
                raise ValueError(
                    f"storage.root: {self.root!r} names no bucket; write s3://bucket or s3://bucket/prefix"
                )
            object.__setattr__(self, "root", self.root.rstrip("/"))
        elif "://" in self.root:
            raise ValueError(
                f"storage.root: {self.root!r} has a scheme that is not supported; use a local folder or s3://bucket/prefix"
            )
        else:
            object.__setattr__(self, "root", str(Path(self.root).expanduser().absolute()))

    def uri(self, *parts: str) -> str:
        """The URI of `parts` under the root. Raises ValueError for a part that would leave it."""
        names = [name for part in parts for name in PurePosixPath(part).parts]
        if any(name in ("..", "/") for name in names):
            raise ValueError(f"{'/'.join(parts)!r} leaves the store {self.root}; name files below it")
        return "/".join([self.root, *names])

    def read(self, uri: str) -> bytes:
        """All bytes of one file. Raises FileNotFoundError."""
        return _remote().cat_file(uri) if is_remote(uri) else Path(uri).read_bytes()

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of one file, fewer where it ends before. Raises FileNotFoundError."""
        if is_remote(uri):
            part: bytes = _remote().cat_file(uri, start=start, end=stop)
            return part
        with open(uri, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def write(self, uri: str, data: bytes) -> None:
        """Writes one file whole, replacing what was there."""
        if is_remote(uri):
            _remote().pipe_file(uri, data)
        else:
            write_atomic(uri, data)

    @contextmanager
    def open(self, uri: str, mode: str = "rb") -> Iterator[IO[bytes]]:
        """Opens one file for "rb" or "wb". What is written appears when the block ends well, and not at all when it raises."""
        if mode not in ("rb", "wb"):
            raise ValueError(f"mode {mode!r}: a store opens files with 'rb' or 'wb'")
        if mode == "rb":
            with _remote().open(uri, "rb") if is_remote(uri) else open(uri, "rb") as file:
                yield file
        else:
            with _open_remote(uri) if is_remote(uri) else _open_local(uri) as file:
                yield file

    def exists(self, uri: str) -> bool:
        """Whether `uri` is a file, or a folder with files in it."""
        return bool(_remote().exists(uri)) if is_remote(uri) else Path(uri).exists()

    def size(self, uri: str) -> int:
        """Bytes of one file, without reading it. Raises FileNotFoundError."""
        return int(_remote().info(uri)["size"]) if is_remote(uri) else Path(uri).stat().st_size

    def list(self, prefix: str) -> list[str]:
        """URIs of every file below the folder `prefix`, sorted; empty where there is none."""
        if is_remote(prefix):
            return sorted(f"s3://{key}" for key in _remote().find(prefix.rstrip("/") + "/"))
        return sorted(str(path) for path in Path(prefix).rglob("*") if path.is_file())

    def delete(self, prefix: str) -> None:
        """Removes a file, or a folder with all below it. Nothing there is no error. Raises ValueError outside the root."""
        if not (prefix == self.root or prefix.startswith(self.root + "/")):
            raise ValueError(f"{prefix!r} is outside the store {self.root}; only files below the root are deleted")
        if is_remote(prefix):
            if _remote().exists(prefix):
                _remote().rm(prefix, recursive=True)
        elif Path(prefix).is_dir():
            shutil.rmtree(prefix)
        else:
            Path(prefix).unlink(missing_ok=True)

    def fetch_folder(self, uri: str, local: str | Path) -> None:
        """Copies every file below `uri` into the local folder. Raises FileNotFoundError where there is none."""
        files = self.list(uri)
        if not files:
            raise FileNotFoundError(f"{uri}: no files there")
        for file in files:
            target = Path(local) / file.removeprefix(uri.rstrip("/") + "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.open(file) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)

    def put_folder(self, local: str | Path, uri: str) -> None:
        """Copies every file below a local folder to below `uri`."""
        for path in sorted(Path(local).rglob("*")):
            if path.is_file():
                self.put_file(path, f"{uri.rstrip('/')}/{path.relative_to(local).as_posix()}")

    def put_file(self, local: str | Path, uri: str) -> None:
        """Copies one local file to `uri`, whole."""
        with open(local, "rb") as source, self.open(uri, "wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Writes only where nothing is; True when this call wrote. Of many callers at once exactly one wins.

        Raises ValueError when the S3 server ignores conditional writes: it is probed once a process, since some answer 200 and overwrite.
        """
        if is_remote(uri):
            _probe_conditional_writes(self.root)
            return _create_remote(uri, data)
        return _create_local(uri, data)

    def digest(self, uri: str) -> tuple[str, int]:
        """Returns a file's sha256 and its bytes, read in pieces. Raises FileNotFoundError."""
        digest, size = hashlib.sha256(), 0
        with self.open(uri) as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                size += len(piece)
        return digest.hexdigest(), size

    def entry(self, name: str, uri: str, **meta: Any) -> Entry:
        """The manifest entry of a stored file: reads it once for its sha256."""
        digest, size = self.digest(uri)
        version = _remote().info(uri).get("VersionId") if is_remote(uri) else None
        return Entry(name, uri, size, digest, None if version in (None, "null") else version, meta)

    def check(self) -> None:
        """Writes, reads and deletes a probe. Raises ValueError that says what failed and how to mend it."""
        probe = self.uri(f".probe-{uuid.uuid4().hex}")
        try:
            self.write(probe, b"mgpt")
            assert self.read(probe) == b"mgpt"
            self.delete(probe)
        except Exception as error:
            fix = (
                "check AWS_ENDPOINT_URL, the credentials and that the bucket exists"
                if is_remote(probe)
                else "check the folder's permissions and space"
            )
            raise ValueError(
                f"storage.root: {self.root} cannot be written ({type(error).__name__}: {error}); {fix}"
            ) from error


@contextmanager
def _open_local(uri: str) -> Iterator[IO[bytes]]:
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _open_remote(uri: str) -> Iterator[IO[bytes]]:
    # fsspec commits on close even when the block raised, so committing is taken into our own hands.
    file = _remote().open(uri, "wb", autocommit=False)
    try:
        yield file
    except BaseException:
        file.closed or file.discard()
        file.closed = True
        raise
    file.close()
    file.commit()


def _create_local(uri: str, data: bytes) -> bool:
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    part.write_bytes(data)
    try:
        os.link(part, target)  # fails when the name is taken, and shows the whole content at once
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True


def _create_remote(uri: str, data: bytes) -> bool:
    try:
        _remote().pipe_file(uri, data, mode="create")
    except FileExistsError:
        return False
    return True


@lru_cache(maxsize=8)
def _probe_conditional_writes(root: str) -> None:
    probe = f"{root}/.probe-{uuid.uuid4().hex}"
    first, second = _create_remote(probe, b"1"), _create_remote(probe, b"2")
    _remote().rm(probe)
    if not first or second:
        raise ValueError(
            f"storage.root: the server of {root} ignores conditional writes (If-None-Match), so two runs could both win; "
            "use one that honours them"
        )
