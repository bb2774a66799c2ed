"""File systems behind URIs: the local disk, and every remote one that fsspec knows (`s3://`, `gs://`, `az://`,
`memory://`).

Writes are atomic: a reader sees the complete file or none. Local files are written under another name and renamed;
remote ones are committed when they are closed.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.registry import known_implementations

from mgpt.storage.s3 import s3_options

_READ_ONLY = ("http", "https", "hf", "package", "file")  # schemes that fsspec knows and no store can be

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")


def is_remote(uri: str) -> bool:
    """Returns True for a URI with a scheme (`s3://...`), False for a local path."""
    return "://" in uri


def scheme_of(uri: str) -> str:
    """Returns the scheme of a remote URI, such as `s3`."""
    return uri.partition("://")[0]


def check_scheme(root: str) -> None:
    """Checks that a store can lie at a remote root.

    Raises:
        ValueError: the scheme is unknown or read-only, its fsspec package is not installed, or the root names no
        bucket.
    """
    scheme = scheme_of(root)
    known = known_implementations.get(scheme)
    if known is None or scheme in _READ_ONLY:
        raise ValueError(
            f"storage.root: {root!r} has a scheme that a store cannot use; use a local folder, s3://bucket/prefix, or "
            "another scheme that fsspec can write (gs://, az://)"
        )
    if not root.partition("://")[2].strip("/"):
        raise ValueError(f"storage.root: {root!r} names no bucket; write {scheme}://bucket or {scheme}://bucket/prefix")
    package = known["class"].partition(".")[0]
    if find_spec(package) is None:
        raise ValueError(
            f"storage.root: {root!r} needs the package {package}, which is not installed; pip install {package}"
        )


def filesystem(uri: str) -> Any:
    """Returns the fsspec file system of a remote URI: one client per process, since an asyncio client does not
    survive a fork.
    """
    return _client(scheme_of(uri), os.getpid())


@lru_cache(maxsize=8)
def _client(scheme: str, process: int) -> Any:
    # Only the scheme decides: the bucket and prefix of this URI are placeholders.
    return fsspec.url_to_fs(f"{scheme}://bucket/prefix", **(s3_options() if scheme == "s3" else {}))[0]


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def is_unfinished(path: Path) -> bool:
    """Returns True for the name of a local file that is being written; a killed process leaves such a file behind."""
    return _UNFINISHED.fullmatch(path.name) is not None


@contextmanager
def write_local(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a local file for writing; it replaces the old one when the block ends well, not when it raises."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _unfinished(target)
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def write_remote(uri: str) -> Iterator[IO[bytes]]:
    """Opens a remote file for writing; it appears when the block ends well, and not when it raises.

    S3 uploads are streamed and committed at the end. Elsewhere not every file system can discard an upload that was
    begun, so the content is kept in a temporary file until it is whole.
    """
    if scheme_of(uri) != "s3":
        with tempfile.NamedTemporaryFile() as spool:
            yield spool
            spool.flush()
            filesystem(uri).put_file(spool.name, uri)
        return
    # Without autocommit=False fsspec commits on close, even when the block raised.
    file = filesystem(uri).open(uri, "wb", autocommit=False)
    try:
        yield file
    except BaseException:
        if not file.closed:
            file.discard()
        file.closed = True  # else its garbage collection would upload the rest
        raise
    file.close()
    file.commit()


def create_local(uri: str, data: bytes) -> bool:
    """Creates a local file; returns False if it already exists."""
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _unfinished(target)
    part.write_bytes(data)
    try:
        os.link(part, target)  # fails when the name is taken, and shows the whole content at once
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True


def create_remote(uri: str, data: bytes) -> bool:
    """Creates a remote file; returns False if it already exists. Relies on `check_exclusive_create`."""
    try:
        filesystem(uri).pipe_file(uri, data, mode="create")
    except FileExistsError:
        return False
    return True


@lru_cache(maxsize=8)
def check_exclusive_create(root: str) -> None:
    """Checks once per process that the server refuses to create a file twice: some answer 200 and overwrite it.

    Raises:
        ValueError: it does not, or its fsspec package has no such request.
    """
    probe = f"{root}/.probe-{uuid.uuid4().hex}"
    try:
        first, second = create_remote(probe, b"1"), create_remote(probe, b"2")
    except (TypeError, NotImplementedError):
        first, second = False, True
    if filesystem(probe).exists(probe):
        filesystem(probe).rm(probe)
    if not first or second:
        raise ValueError(
            f"storage.root: the server of {root} ignores conditional writes (create only where nothing is); two runs "
            "could both win; use a server that honours them, such as S3 with If-None-Match"
        )
