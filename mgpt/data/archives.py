"""Safe extraction of untrusted archives, and tar files with reproducible bytes."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

BUNDLE = ".bundle.tar"  # a tar file that this project wrote in place of a folder of many small files
_CHUNK = 1 << 18
_FREE_BYTES = 64 << 20  # the ratio limit applies only to archives that extract to more than this


@dataclass(frozen=True)
class RejectedMember:
    """A member that was not extracted. `reason` is path-traversal, link, device or duplicate-member."""

    member: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """Limits against decompression bombs: extracted bytes, members, and extracted bytes per archive byte."""

    total_bytes: int = 2 << 40
    members: int = 20_000_000
    ratio: int = 200


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str  # file, folder, link, device


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> list[RejectedMember]:
    """Extracts regular files below `folder` and returns the rejected members. Nested archives stay files.

    Raises:
        ValueError: the archive is damaged or exceeds `limits`. The caller deletes what was extracted before.
    """
    limits = limits or Limits()
    allowed = min(limits.total_bytes, max(_FREE_BYTES, archive.stat().st_size * limits.ratio))
    rejected: list[RejectedMember] = []
    seen: set[str] = set()
    try:
        for count, (member, stream) in enumerate(_members(archive), 1):
            if count > limits.members:
                raise ValueError(f"{archive.name}: more than {limits.members} members; it may be a decompression bomb")
            if reason := _reject_reason(member, seen):
                rejected.append(RejectedMember(member.name, reason))
            elif stream is not None:
                allowed -= _write(stream, folder / member.name, allowed, archive.name)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{archive.name} cannot be read as an archive ({type(error).__name__}: {error}); download it again"
        ) from error
    return rejected


def _reject_reason(member: _Member, seen: set[str]) -> str | None:
    path = PurePosixPath(member.name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in member.name
        or "\0" in member.name
        or not path.parts
        or ":" in path.parts[0]
    ):
        return "path-traversal"
    if member.kind in ("link", "device"):
        return member.kind
    if member.kind == "file":
        if str(path) in seen:
            return "duplicate-member"
        seen.add(str(path))
    return None


def _write(stream: IO[bytes], target: Path, allowed: int, archive: str) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with open(target, "xb") as file:
        while piece := stream.read(_CHUNK):
            written += len(piece)
            if written > allowed:
                raise ValueError(f"{archive}: extracts to too many bytes for its size; it may be a decompression bomb")
            file.write(piece)
    return written


def _members(archive: Path) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                    yield _Member(info.filename, "folder" if info.is_dir() else "link"), None
                else:
                    with zipped.open(info) as stream:
                        yield _Member(info.filename, "file"), stream
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if member.isreg():
                yield _Member(member.name, "file"), tar.extractfile(member)
            elif member.isdir():
                yield _Member(member.name, "folder"), None
            else:
                yield _Member(member.name, "link" if member.issym() or member.islnk() else "device"), None


def write_tar(target: IO[bytes], files: Iterable[tuple[str, bytes]]) -> None:
    """Writes an uncompressed tar file whose bytes depend only on names and contents (no times, owners or modes)."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
