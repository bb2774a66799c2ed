"""The store: files under one root, a local folder or a remote prefix, behind one small interface.

Writes are atomic: a reader never sees half a file, whatever is killed. Files that other stages rely on are
named by a `Manifest` with their size and sha256, so that one altered byte is found.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mgpt.storage.filesystem import (
    check_exclusive_create,
    check_scheme,
    create_local,
    create_remote,
    filesystem,
    is_remote,
    is_unfinished,
    scheme_of,
    write_local,
    write_remote,
)
from mgpt.storage.types import Entry

_CHUNK = 1 << 20  # bytes read at a time when hashing or copying


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a local file so that a reader sees the old content or the new, never a part."""
    with write_local(path) as file:
        file.write(data)


@dataclass(frozen=True)
class Store:
    """Files under one root: a local folder, `s3://bucket/prefix`, or another scheme whose fsspec package is installed.

    Credentials and endpoint of an S3-compatible server come from the usual `AWS_*` variables. Picklable; workers make
    their own client. Methods take full URIs, made by `uri`.
    """

    root: str

    def __post_init__(self) -> None:
        if is_remote(self.root):
            check_scheme(self.root)
            object.__setattr__(self, "root", self.root.rstrip("/"))
        else:
            object.__setattr__(self, "root", str(Path(self.root).expanduser().absolute()))

    def uri(self, *parts: str) -> str:
        """Returns the URI of `parts` under the root. Raises ValueError for a part that would leave it."""
        names = [name for part in parts for name in PurePosixPath(part).parts]
        if any(name in ("..", "/") for name in names):
            raise ValueError(f"{'/'.join(parts)!r} leaves the store {self.root}; name files below it")
        return "/".join([self.root, *names])

    def read(self, uri: str) -> bytes:
        """Returns all bytes of one file. Raises FileNotFoundError."""
        return filesystem(uri).cat_file(uri) if is_remote(uri) else Path(uri).read_bytes()

    def read_range(self, uri: str, start: int, stop: int) -> bytes:
        """Returns bytes `start` to `stop` of one file, fewer where it ends before. Raises FileNotFoundError."""
        if is_remote(uri):
            part: bytes = filesystem(uri).cat_file(uri, start=start, end=stop)
            return part
        with open(uri, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def write(self, uri: str, data: bytes) -> None:
        """Writes one file whole, replacing what was there."""
        if is_remote(uri):
            filesystem(uri).pipe_file(uri, data)
        else:
            write_atomic(uri, data)

    @contextmanager
    def open(self, uri: str, mode: str = "rb") -> Iterator[IO[bytes]]:
        """Opens one file for "rb" or "wb". What is written appears when the block ends well, and not at all when it
        raises.
        """
        if mode not in ("rb", "wb"):
            raise ValueError(f"mode {mode!r}: a store opens files with 'rb' or 'wb'")
        if mode == "rb":
            with filesystem(uri).open(uri, "rb") if is_remote(uri) else open(uri, "rb") as file:
                yield file
        else:
            with write_remote(uri) if is_remote(uri) else write_local(uri) as file:
                yield file

    def exists(self, uri: str) -> bool:
        """Returns True where `uri` is a file, or a folder with files in it."""
        return bool(filesystem(uri).exists(uri)) if is_remote(uri) else Path(uri).exists()

    def size(self, uri: str) -> int:
        """Returns the bytes of one file, without reading it. Raises FileNotFoundError."""
        return int(filesystem(uri).info(uri)["size"]) if is_remote(uri) else Path(uri).stat().st_size

    def list(self, prefix: str) -> list[str]:
        """Returns the URIs of every file below the folder `prefix`, sorted; empty where there is none.

        Keys that end in `/`, which S3 consoles make for folders, are no files. Neither are local files that a killed
        process did not finish.
        """
        if not is_remote(prefix):
            return sorted(str(path) for path in Path(prefix).rglob("*") if path.is_file() and not is_unfinished(path))
        found = filesystem(prefix).find(prefix.rstrip("/") + "/", detail=True)
        keys = [key for key, info in found.items() if info["type"] == "file" and not key.endswith("/")]
        return sorted(f"{scheme_of(prefix)}://{key.lstrip('/')}" for key in keys)

    def delete(self, prefix: str) -> None:
        """Removes a file or a folder; nothing there is no error. Raises ValueError outside the root."""
        if not (prefix == self.root or prefix.startswith(self.root + "/")):
            raise ValueError(f"{prefix!r} is outside the store {self.root}; only files below the root are deleted")
        if is_remote(prefix):
            if filesystem(prefix).exists(prefix):
                filesystem(prefix).rm(prefix, recursive=True)
        elif Path(prefix).is_dir():
            shutil.rmtree(prefix)
        else:
            Path(prefix).unlink(missing_ok=True)

    def fetch_file(self, uri: str, local: str | Path) -> None:
        """Copies one file to a local path. Raises FileNotFoundError."""
        Path(local).parent.mkdir(parents=True, exist_ok=True)
        with self.open(uri) as source, open(local, "wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)

    def fetch_folder(self, uri: str, local: str | Path) -> None:
        """Copies every file below `uri` into the local folder. Raises FileNotFoundError where there is none."""
        files = self.list(uri)
        if not files:
            raise FileNotFoundError(f"{uri}: no files there")
        for file in files:
            self.fetch_file(file, Path(local) / file.removeprefix(uri.rstrip("/") + "/"))

    def put_file(self, local: str | Path, uri: str) -> None:
        """Copies one local file to `uri` atomically."""
        with open(local, "rb") as source, self.open(uri, "wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)

    def put_folder(self, local: str | Path, uri: str) -> None:
        """Copies every file below a local folder to below `uri`."""
        for path in sorted(Path(local).rglob("*")):
            if path.is_file():
                self.put_file(path, f"{uri.rstrip('/')}/{path.relative_to(local).as_posix()}")

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Writes only where nothing is; returns True when this call wrote. Of many callers at once exactly one wins.

        Raises ValueError where the file system cannot create a file exclusively.
        """
        if is_remote(uri):
            check_exclusive_create(self.root)
            return create_remote(uri, data)
        return create_local(uri, data)

    def digest(self, uri: str) -> tuple[str, int]:
        """Returns a file's sha256 and its bytes; reads it in pieces. Raises FileNotFoundError."""
        digest, size = hashlib.sha256(), 0
        with self.open(uri) as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                size += len(piece)
        return digest.hexdigest(), size

    def entry(self, name: str, uri: str, **meta: Any) -> Entry:
        """Returns the manifest entry of a stored file; reads it once for its sha256."""
        digest, size = self.digest(uri)
        version = filesystem(uri).info(uri).get("VersionId") if is_remote(uri) else None
        return Entry(name, uri, size, digest, None if version in (None, "null") else version, meta)

    def check(self) -> None:
        """Writes, reads and deletes a probe. Raises ValueError that names what failed and the fix."""
        probe = self.uri(f".probe-{uuid.uuid4().hex}")
        try:
            self.write(probe, b"mgpt")
            assert self.read(probe) == b"mgpt"
            self.delete(probe)
        except Exception as error:  # every kind of store raises its own
            fix = (
                "check the server's address (AWS_ENDPOINT_URL), the credentials and that the bucket exists"
                if is_remote(probe)
                else "check the folder's permissions and space"
            )
            raise ValueError(
                f"storage.root: {self.root} cannot be written ({type(error).__name__}: {error}); {fix}"
            ) from error
