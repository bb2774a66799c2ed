"""Archives from strangers: made the same on every machine, opened without ever leaving the folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

BUNDLE = ".bundle.tar"  # a tar of ours that stands for a folder of many small files
_CHUNK = 1 << 18
_FREE_BYTES = 64 << 20  # an archive may always grow to this, whatever its ratio


@dataclass(frozen=True)
class RejectedMember:
    """A member that was not extracted, and why: path-traversal, link, device, duplicate-member."""

    member: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """When an archive is a bomb: bytes in all, members, and bytes out for each byte in."""

    total_bytes: int = 2 << 40
    members: int = 20_000_000
    ratio: int = 200


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str  # file, folder, link, device


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> list[RejectedMember]:
    """Extracts regular files below `folder`, and gives back what it refused.

    Archives inside the archive stay files: they are not opened in turn.

    Raises:
        ValueError: the archive is damaged, or grows beyond `limits` (what was extracted so far stays for the caller to delete).
    """
    limits = limits or Limits()
    allowed = min(limits.total_bytes, max(_FREE_BYTES, archive.stat().st_size * limits.ratio))
    refused: list[RejectedMember] = []
    seen: set[str] = set()
    try:
        for count, (member, stream) in enumerate(_members(archive), 1):
            if count > limits.members:
                raise ValueError(f"{archive.name}: more than {limits.members} members; it looks like a bomb")
            if problem := _problem(member, seen):
                refused.append(RejectedMember(member.name, problem))
            elif stream is not None:
                allowed -= _write(stream, folder / member.name, allowed, archive.name)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{archive.name} cannot be read as an archive ({type(error).__name__}: {error}); download it again"
        ) from error
    return refused


def _problem(member: _Member, seen: set[str]) -> str | None:
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
                raise ValueError(
                    f"{archive}: unpacks to far more bytes than it has; it looks like a bomb and was not opened further"
                )
            file.write(piece)
    return written


def _members(archive: Path) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                yield from _zip_member(zipped, info)
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            kind = (
                "file"
                if member.isreg()
                else "folder"
                if member.isdir()
                else "link"
                if member.issym() or member.islnk()
                else "device"
            )
            yield _Member(member.name, member.size, kind), tar.extractfile(member) if kind == "file" else None


def _zip_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[tuple[_Member, IO[bytes] | None]]:
    mode = info.external_attr >> 16
    kind = "folder" if info.is_dir() else "link" if stat.S_ISLNK(mode) else "file"
    member = _Member(info.filename, info.file_size, kind)
    if kind != "file":
        yield member, None
        return
    with zipped.open(info) as stream:
        yield member, stream


def write_tar(target: IO[bytes], files: Iterable[tuple[str, bytes]]) -> None:
    """Writes an uncompressed tar whose bytes depend on names and contents alone (no times, owners or modes)."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
