"""One file from the first mirror that has it: resumed where it stopped, checked, and never shown half."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mgpt.download.mirrors import Gone, Location, Remote, Unreliable
from mgpt.storage import sha256_file

_CHUNK = 1 << 18
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How often one mirror is tried, how long a silent connection is kept (seconds) and the first pause between
    attempts.
    """

    attempts: int = 5
    timeout_seconds: float = 30
    backoff_seconds: float = 0.5


@dataclass(frozen=True)
class Mirror:
    """A file at one location."""

    location: Location
    remote: Remote


@dataclass(frozen=True)
class Fetched:
    """A whole file on this machine."""

    path: Path
    size: int
    sha256: str
    origin: str


class FetchError(Exception):
    """No mirror gave the file; the message holds each mirror's last word."""


def fetch(mirrors: Sequence[Mirror], path: Path, patience: Patience, sha256: str | None = None) -> Fetched:
    """Brings one file to `path`, asking the mirrors in order.

    What has arrived is kept beside it as `NAME.part`; a later attempt, also in another process, asks only for the rest.

    Raises:
        FetchError: every mirror failed, or gave bytes with another sha256.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    last_words = []
    for mirror in mirrors:
        try:
            return _from_mirror(mirror, path, patience, sha256)
        except (Gone, Unreliable) as error:
            last_words.append(str(error))
    raise FetchError("; ".join(last_words))


def _from_mirror(mirror: Mirror, path: Path, patience: Patience, sha256: str | None) -> Fetched:
    # The mirror's address is in the partial file's name: bytes of two mirrors are never joined.
    tag = hashlib.sha256(f"{mirror.remote.uri}|{mirror.remote.stamp}".encode()).hexdigest()[:12]
    part = path.with_name(f"{path.name}.{tag}.part")
    return persist(lambda: _attempt(mirror, part, path, patience, sha256), patience)


def persist(action: Callable[[], Result], patience: Patience) -> Result:
    """Calls `action` until it no longer raises Unreliable, with growing pauses; the last Unreliable is passed on."""
    for attempt in range(patience.attempts - 1):
        try:
            return action()
        except Unreliable:
            time.sleep(patience.backoff_seconds * 2**attempt * random.uniform(0.5, 1.5))
    return action()


def _attempt(mirror: Mirror, part: Path, path: Path, patience: Patience, sha256: str | None) -> Fetched:
    _continue(mirror, part, patience.timeout_seconds)
    digest = sha256_file(part)
    if sha256 not in (None, digest):
        part.unlink()
        raise Unreliable(f"{mirror.remote.uri}: sha256 is {digest}, not the declared {sha256}")
    size = part.stat().st_size
    part.replace(path)
    part.with_suffix(".version").unlink(missing_ok=True)
    return Fetched(path, size, digest, mirror.remote.uri)


def _continue(mirror: Mirror, part: Path, timeout: float) -> None:
    """Appends what is missing of the file. Raises Unreliable when the body ended early (what came stays)."""
    have = part.stat().st_size if part.exists() else 0
    mark = part.with_suffix(".version")
    version = mark.read_text(encoding="utf-8") if have and mark.exists() else ""
    if mirror.remote.size is not None and have == mirror.remote.size and have:
        return
    with (
        mirror.location.open(mirror.remote, have, timeout, version) as body,
        open(part, "r+b" if have else "wb") as file,
    ):
        mark.write_text(body.version, encoding="utf-8")
        file.seek(body.offset)
        file.truncate()
        try:
            while piece := body.stream.read(_CHUNK):
                file.write(piece)
        except Exception as error:
            # Whatever a client library raises in the middle of a body, the bytes so far are good.
            raise Unreliable(f"{mirror.remote.uri}: {type(error).__name__}: {error}") from error
        arrived = file.tell()
    if body.total is not None and arrived < body.total:
        raise Unreliable(f"{mirror.remote.uri}: the body ended after {arrived} of {body.total} bytes")
    if body.total is not None and arrived > body.total:
        part.unlink()
        raise Unreliable(f"{mirror.remote.uri}: {arrived} bytes came, {body.total} were announced")
