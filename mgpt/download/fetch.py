"""Fetching of one file: mirrors in order, retries, resumption of partial files, and a sha256 check."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from mgpt.config.sources import DownloadSettings
from mgpt.download.mirrors import Location, NotFoundError, RemoteFile, TransientError
from mgpt.storage import sha256_file

MAX_RETRY_AFTER = 300.0  # seconds; a server that asks for a longer pause is left to the next mirror or the next run
_CHUNK = 1 << 18
Result = TypeVar("Result")


@dataclass(frozen=True)
class Mirror:
    """A file at one location."""

    location: Location
    remote: RemoteFile


@dataclass(frozen=True)
class FetchedFile:
    """A complete local file, and the URI that it came from."""

    path: Path
    size: int
    sha256: str
    origin: str


class FetchError(Exception):
    """No mirror provided the file; the message holds the last error of each mirror."""


def fetch(mirrors: Sequence[Mirror], path: Path, settings: DownloadSettings, sha256: str | None = None) -> FetchedFile:
    """Fetches one file to `path` from the first mirror that provides it.

    Partial content is kept next to `path`; a later attempt, also in another process, requests only the rest.

    Raises:
        FetchError: every mirror failed, or its content has another sha256.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    errors = []
    for mirror in mirrors:
        try:
            return _fetch_from(mirror, path, settings, sha256)
        except (NotFoundError, TransientError) as error:
            errors.append(str(error))
    raise FetchError("; ".join(errors))


def retry(action: Callable[[], Result], settings: DownloadSettings) -> Result:
    """Calls `action` until it raises no TransientError, at most `settings.attempts` times.

    Pauses grow from `settings.backoff_seconds` and double each time, with jitter. A server's Retry-After lengthens a
    pause; one above `MAX_RETRY_AFTER` ends the attempts. Raises the last TransientError.
    """
    backoff = wait_exponential(multiplier=settings.backoff_seconds)
    policy = Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=lambda state: state.attempt_number >= settings.attempts or _retry_after(state) > MAX_RETRY_AFTER,
        wait=lambda state: max(backoff(state) * random.uniform(0.5, 1.5), _retry_after(state)),
        reraise=True,
    )
    return policy(action)


def _retry_after(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after if isinstance(error, TransientError) else 0.0


def _fetch_from(mirror: Mirror, path: Path, settings: DownloadSettings, sha256: str | None) -> FetchedFile:
    # The name of the partial file depends on the mirror, so that content of two mirrors is never joined.
    tag = hashlib.sha256(f"{mirror.remote.uri}|{mirror.remote.stamp}".encode()).hexdigest()[:12]
    part = path.with_name(f"{path.name}.{tag}.part")
    return retry(lambda: _fetch_once(mirror, part, path, settings.timeout_seconds, sha256), settings)


def _fetch_once(mirror: Mirror, part: Path, path: Path, timeout: float, sha256: str | None) -> FetchedFile:
    _append_rest(mirror, part, timeout)
    digest = sha256_file(part)
    if sha256 not in (None, digest):
        part.unlink()
        raise TransientError(f"{mirror.remote.uri}: sha256 is {digest}, not the declared {sha256}")
    size = part.stat().st_size
    part.replace(path)
    part.with_suffix(".version").unlink(missing_ok=True)
    return FetchedFile(path, size, digest, mirror.remote.uri)


def _append_rest(mirror: Mirror, part: Path, timeout: float) -> None:
    """Appends the missing rest of the file to `part`.

    Raises:
        TransientError: the body ended early; the bytes received stay in `part`.
    """
    received = part.stat().st_size if part.exists() else 0
    version_file = part.with_suffix(".version")
    version = version_file.read_text(encoding="utf-8") if received and version_file.exists() else ""
    if received and received == mirror.remote.size:
        return
    with (
        mirror.location.open(mirror.remote, received, timeout, version) as body,
        open(part, "r+b" if received else "wb") as file,
    ):
        version_file.write_text(body.version, encoding="utf-8")
        file.seek(body.offset)
        file.truncate()
        try:
            while chunk := body.stream.read(_CHUNK):
                file.write(chunk)
        except Exception as error:
            # Client libraries raise errors of many types within a body; the bytes received so far are valid.
            raise TransientError(f"{mirror.remote.uri}: {type(error).__name__}: {error}") from error
        received = file.tell()
    if body.total is not None and received < body.total:
        raise TransientError(f"{mirror.remote.uri}: the body ended after {received} of {body.total} bytes")
    if body.total is not None and received > body.total:
        part.unlink()
        raise TransientError(f"{mirror.remote.uri}: received {received} bytes, {body.total} were announced")
