"""Where files come from: a local folder, the package itself, HTTP, S3 or a hub, behind one face: list the files,
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

from mgpt.storage import Store

_HTTP_SESSIONS = threading.local()


class Gone(Exception):
    """This location does not have the file and never will; the next mirror is asked."""


class Unreliable(Exception):
    """The location failed in a way that passes: worth another attempt."""


@dataclass(frozen=True)
class Remote:
    """A file at a location: its name relative to the source's folder, and its size in bytes where the location
    tells.
    """

    name: str
    uri: str
    size: int | None = None
    stamp: str = ""


@dataclass
class Body:
    """An open file: `stream` starts at byte `offset` (0 where the server ignored the wish), `total` bytes in all
    where known; `version` is
    the server's mark of this content (ETag), which a later request for the rest names."""

    stream: IO[bytes]
    offset: int
    total: int | None
    version: str = ""


class Location(Protocol):
    """One mirror of a source."""

    def list(self) -> list[Remote]:
        """The files there, by name. Raises Gone where there is nothing, Unreliable where the server failed."""

    def open(self, remote: Remote, offset: int, timeout: float, version: str = "") -> AbstractContextManager[Body]:
        """A context manager that gives a Body. Raises Gone or Unreliable."""


def locate(uri: str, include: tuple[str, ...]) -> Location:
    """The location of a URI or path of `SourceSettings.locations`."""
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


def wanted(name: str, include: tuple[str, ...]) -> bool:
    """Whether a file's name, or its last part, matches a pattern of `include`; hidden files never do."""
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(parts[-1], pattern) for pattern in include)


@dataclass(frozen=True)
class FolderLocation:
    """A file or folder of this machine. Symbolic links are followed only where they stay inside the folder."""

    path: Path
    include: tuple[str, ...]

    def list(self) -> list[Remote]:
        if self.path.is_file():
            return [self._remote(self.path, self.path.name)]
        if not self.path.is_dir():
            raise Gone(f"{self.path} does not exist")
        root = self.path.resolve()
        inside = (
            path for path in sorted(self.path.rglob("*")) if path.is_file() and path.resolve().is_relative_to(root)
        )
        return [
            self._remote(path, name)
            for path in inside
            if wanted(name := path.relative_to(self.path).as_posix(), self.include)
        ]

    def _remote(self, path: Path, name: str) -> Remote:
        status = path.stat()
        return Remote(name, str(path), status.st_size, str(status.st_mtime_ns))

    @contextmanager
    def open(self, remote: Remote, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        try:
            file = open(remote.uri, "rb")  # noqa: SIM115 (closed below; opening alone is what may fail)
        except OSError as error:
            raise Gone(f"{remote.uri}: {error.strerror}") from error
        with file:
            file.seek(offset)
            yield Body(file, offset, remote.size)


@dataclass(frozen=True)
class S3Location:
    """Objects below an `s3://` prefix."""

    uri: str
    include: tuple[str, ...]

    def list(self) -> list[Remote]:
        store, prefix = Store(self.uri.rstrip("/")), self.uri.rstrip("/")
        with _passing_errors(self.uri):
            found = store.list(prefix)
            if not found and store.exists(prefix):
                return [Remote(prefix.rsplit("/", 1)[1], prefix)]
        if not found:
            raise Gone(f"{self.uri}: no objects there")
        named = ((uri.removeprefix(prefix + "/"), uri) for uri in found)
        return [Remote(name, uri) for name, uri in named if wanted(name, self.include)]

    @contextmanager
    def open(self, remote: Remote, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        with _passing_errors(remote.uri), Store(self.uri.rstrip("/")).open(remote.uri) as file:
            total = getattr(file, "size", None)
            file.seek(offset)
            yield Body(file, offset, total)


@dataclass(frozen=True)
class HubLocation:
    """Files of a hub dataset at a revision: `datasets/owner/name@revision[/folder]`."""

    path: str
    include: tuple[str, ...]

    def list(self) -> list[Remote]:
        with _passing_errors(f"hf://{self.path}"):
            found = _hub().find(self.path, detail=True)
        if not found:
            raise Gone(f"hf://{self.path}: no files there")
        named = ((uri.removeprefix(self.path).lstrip("/"), uri, info) for uri, info in sorted(found.items()))
        return [
            Remote(name, uri, info.get("size"), str(info.get("blob_id", "")))
            for name, uri, info in named
            if wanted(name, self.include)
        ]

    @contextmanager
    def open(self, remote: Remote, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        with _passing_errors(remote.uri), _hub().open(remote.uri, "rb") as file:
            file.seek(offset)
            yield Body(file, offset, remote.size)


@dataclass(frozen=True)
class HttpLocation:
    """One file, or with a URL that ends in `/` the files named in `include` below it."""

    url: str
    include: tuple[str, ...]

    def list(self) -> list[Remote]:
        if not self.url.endswith("/"):
            return [Remote(self.url.split("?")[0].rsplit("/", 1)[1], self.url)]
        patterns = [name for name in self.include if any(letter in name for letter in "*?[")]
        if patterns:
            raise ValueError(
                f"sources.include: {patterns} for {self.url}: a web folder cannot be listed; name its files"
            )
        return [Remote(name, self.url + name) for name in self.include]

    @contextmanager
    def open(self, remote: Remote, offset: int, timeout: float, version: str = "") -> Iterator[Body]:
        import requests

        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": version} if version else {})
        try:
            with _http().get(remote.uri, headers=headers, stream=True, timeout=timeout) as response:
                _check_status(response.status_code, remote.uri, offset)
                resumed = response.status_code == 206
                length = response.headers.get("Content-Length")
                start = offset if resumed else 0
                total = start + int(length) if length is not None else None
                yield Body(response.raw, start, total, response.headers.get("ETag", ""))
        except (requests.RequestException, OSError) as error:
            raise Unreliable(f"{remote.uri}: {type(error).__name__}: {error}") from error


def _check_status(status: int, url: str, offset: int) -> None:
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500 or (status == 416 and offset):
        raise Unreliable(f"{url}: HTTP {status}")
    raise Gone(f"{url}: HTTP {status}")


def _http() -> Any:
    # One session a thread: connections are kept open, and requests' sessions are not made for sharing.
    import requests

    if not hasattr(_HTTP_SESSIONS, "session"):
        _HTTP_SESSIONS.session = requests.Session()
        _HTTP_SESSIONS.session.headers["User-Agent"] = "mgpt-download"
    return _HTTP_SESSIONS.session


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


@contextmanager
def _passing_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise Gone(f"{uri}: {type(error).__name__}: {error}") from error
    except (OSError, EOFError) as error:
        raise Unreliable(f"{uri}: {type(error).__name__}: {error}") from error
