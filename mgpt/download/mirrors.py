"""Locations of files (local folder, package data, HTTP, S3, Hugging Face hub) behind one interface: list the files,
open one at an offset.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, Protocol

import huggingface_hub
import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from mgpt.storage import Store

_HTTP_SESSIONS = threading.local()


class NotFoundError(Exception):
    """The location does not provide the file, so a retry is useless; the next mirror is tried."""


class TransientError(Exception):
    """A failure that a retry may overcome; `retry_after` is the pause in seconds that the server asked for, or 0."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class RemoteFile:
    """A file at a location.

    name: relative to the source's folder. size: bytes, where the location gives it. stamp: changes with the content
    (modification time, object id), where the location gives one.
    """

    name: str
    uri: str
    size: int | None = None
    stamp: str = ""


@dataclass
class Body:
    """An open file.

    stream: the content from byte `offset` on, which is 0 where the server ignored the requested range. total: bytes of
    the whole file, where known. version: the server's ETag, which a later request for the rest sends as `If-Range`.
    """

    stream: IO[bytes]
    offset: int
    total: int | None
    version: str = ""


class Location(Protocol):
    """One mirror of a source."""

    def list(self) -> list[RemoteFile]:
        """Returns its files in order of name. Raises NotFoundError if there are none, or TransientError."""

    def open(self, remote: RemoteFile, offset: int, timeout: float, version: str = "") -> AbstractContextManager[Body]:
        """Yields the file's content from byte `offset` on. Raises NotFoundError or TransientError."""


def locate(uri: str, include: tuple[str, ...]) -> Location:
    """Returns the location of a URI or path of `SourceSettings.locations`, limited to the patterns `include`."""
    if uri.startswith(("http://", "https://")):
        return HttpLocation(uri, include)
    if uri.startswith("s3://"):
        return S3Location(uri, include)
    if uri.startswith("hf://"):
        return HubLocation(uri.removeprefix("hf://"), include)
    if uri.startswith("package://"):
        package, _, folder = uri.removeprefix("package://").partition("/")
        return FolderLocation(Path(str(resources.files(package))) / folder, include)
    return FolderLocation(Path(uri).expanduser(), include)


def _is_included(name: str, include: tuple[str, ...]) -> bool:
    """Returns True if a file's name, or its last part, matches a pattern of `include`; hidden files never do."""
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(parts[-1], pattern) for pattern in include)


@dataclass(frozen=True)
class FolderLocation:
    """A local file or folder. Symbolic links are followed only if they stay inside the folder."""

    path: Path
    include: tuple[str, ...]

    def list(self) -> list[RemoteFile]:
        if self.path.is_file():
            return [self._remote(self.path, self.path.name)]
        if not self.path.is_dir():
            raise NotFoundError(f"{self.path} does not exist")
        root = self.path.resolve()
        paths = (
            path for path in sorted(self.path.rglob("*")) if path.is_file() and path.resolve().is_relative_to(root)
        )
        return [
            self._remote(path, name)
            for path in paths
            if _is_included(name := path.relative_to(self.path).as_posix(), self.include)
        ]

    def _remote(self, path: Path, name: str) -> RemoteFile:
        status = path.stat()
        return RemoteFile(name, str(path), status.st_size, str(status.st_mtime_ns))

    @contextmanager
    def open(self, remote: RemoteFile, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        try:
            file = open(remote.uri, "rb")  # noqa: SIM115 (closed below; only an error of open means NotFoundError)
        except OSError as error:
            raise NotFoundError(f"{remote.uri}: {error.strerror}") from error
        with file:
            file.seek(offset)
            yield Body(file, offset, remote.size)


@dataclass(frozen=True)
class S3Location:
    """Objects below an `s3://` prefix."""

    uri: str
    include: tuple[str, ...]

    def list(self) -> list[RemoteFile]:
        store, prefix = Store(self.uri.rstrip("/")), self.uri.rstrip("/")
        with _translate_errors(self.uri):
            found = store.list(prefix)
            if not found and store.exists(prefix):
                return [RemoteFile(prefix.rsplit("/", 1)[1], prefix)]
        if not found:
            raise NotFoundError(f"{self.uri}: no objects found")
        named = ((uri.removeprefix(prefix + "/"), uri) for uri in found)
        return [RemoteFile(name, uri) for name, uri in named if _is_included(name, self.include)]

    @contextmanager
    def open(self, remote: RemoteFile, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        with _translate_errors(remote.uri), Store(self.uri.rstrip("/")).open(remote.uri) as file:
            total = getattr(file, "size", None)
            file.seek(offset)
            yield Body(file, offset, total)


@dataclass(frozen=True)
class HubLocation:
    """Files of a hub dataset at a revision: `datasets/owner/name@revision[/folder]`."""

    path: str
    include: tuple[str, ...]

    def list(self) -> list[RemoteFile]:
        with _translate_errors(f"hf://{self.path}"):
            found = _hub().find(self.path, detail=True)
        if not found:
            raise NotFoundError(f"hf://{self.path}: no files found")
        named = ((uri.removeprefix(self.path).lstrip("/"), uri, info) for uri, info in sorted(found.items()))
        return [
            RemoteFile(name, uri, info.get("size"), str(info.get("blob_id", "")))
            for name, uri, info in named
            if _is_included(name, self.include)
        ]

    @contextmanager
    def open(self, remote: RemoteFile, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        with _translate_errors(remote.uri), _hub().open(remote.uri, "rb") as file:
            file.seek(offset)
            yield Body(file, offset, remote.size)


@dataclass(frozen=True)
class HttpLocation:
    """One file, or for a URL that ends in `/` the files named in `include` below it."""

    url: str
    include: tuple[str, ...]

    def list(self) -> list[RemoteFile]:
        if not self.url.endswith("/"):
            return [RemoteFile(self.url.split("?")[0].rsplit("/", 1)[1], self.url)]
        patterns = [name for name in self.include if any(character in name for character in "*?[")]
        if patterns:
            raise ValueError(
                f"sources.include: {patterns} for {self.url}: an HTTP folder cannot be listed; name its files"
            )
        return [RemoteFile(name, self.url + name) for name in self.include]

    @contextmanager
    def open(self, remote: RemoteFile, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": version} if version else {})
        try:
            with _http().get(remote.uri, headers=headers, stream=True, timeout=timeout) as response:
                _check_status(response, remote.uri, offset)
                resumed = response.status_code == 206
                length = response.headers.get("Content-Length")
                start = offset if resumed else 0
                total = start + int(length) if length is not None else None
                yield Body(response.raw, start, total, response.headers.get("ETag", ""))
        except (requests.RequestException, OSError) as error:
            raise TransientError(f"{remote.uri}: {type(error).__name__}: {error}") from error


def _check_status(response: requests.Response, url: str, offset: int) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500 or (status == 416 and offset):
        raise TransientError(f"{url}: HTTP {status}", _retry_after(response))
    raise NotFoundError(f"{url}: HTTP {status}")


def _retry_after(response: requests.Response) -> float:
    """Returns the seconds of a Retry-After header (a number or an HTTP date); 0 without a valid one."""
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0


def _http() -> requests.Session:
    # One session per thread: it keeps connections open, and requests does not promise that sessions are thread-safe.
    if not hasattr(_HTTP_SESSIONS, "session"):
        _HTTP_SESSIONS.session = requests.Session()
        _HTTP_SESSIONS.session.headers["User-Agent"] = "mgpt-download"
    session: requests.Session = _HTTP_SESSIONS.session
    return session


def _hub() -> Any:
    return huggingface_hub.HfFileSystem()  # huggingface_hub imports it here, on first use


@contextmanager
def _translate_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise NotFoundError(f"{uri}: {type(error).__name__}: {error}") from error
    except (OSError, EOFError) as error:
        raise TransientError(f"{uri}: {type(error).__name__}: {error}") from error
