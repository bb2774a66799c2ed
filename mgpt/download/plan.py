"""The files of a source, and the items they are stored as: single files, and tar bundles of many small files."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.data.archives import BUNDLE
from mgpt.download.fetch import Mirror, retry
from mgpt.download.mirrors import NotFoundError, RemoteFile, TransientError, locate

BUNDLED_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".txt", ".xml", ".json")
BUNDLE_BYTES = 512 << 20
BUNDLE_FILES = 20_000  # most files in one bundle


@dataclass(frozen=True)
class SourceFile:
    """A file of the source and its mirrors, in the order in which they are tried."""

    name: str
    mirrors: tuple[Mirror, ...]

    @property
    def size(self) -> int | None:
        return next((mirror.remote.size for mirror in self.mirrors if mirror.remote.size is not None), None)

    @property
    def stamp(self) -> str:
        """A text that changes when the file changes at its first mirror (URI, size, time or object id)."""
        remote = self.mirrors[0].remote
        return f"{remote.uri}|{remote.size}|{remote.stamp}"


@dataclass(frozen=True)
class Item:
    """One object of the store: a file, or a bundle of several."""

    name: str
    files: tuple[SourceFile, ...]
    bundle: bool = False

    @property
    def stamp(self) -> str:
        return hashlib.sha256(json.dumps([[file.name, file.stamp] for file in self.files]).encode()).hexdigest()


def source_key(name: str, source: SourceSettings) -> str:
    """Returns the name of a source's folder in the store.

    It is a hash of the settings that determine the content. Of the locations only the first counts, so that a mirror
    added later does not fetch everything again.
    """
    content = source.model_dump(mode="json", include={"kind", "include", "sha256", "seed", "counts"})
    content["first"] = [*source.locations[:1], *(mirrors[0] for _, mirrors in sorted(source.files.items()))]
    return f"{name}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


def list_files(name: str, source: SourceSettings, settings: DownloadSettings) -> list[SourceFile]:
    """Returns every file of the source with its mirrors, in order of name.

    Raises:
        ValueError: no location has a file that matches `include`; the message holds the error of each.
    """
    mirrors: dict[str, list[Mirror]] = defaultdict(list)
    errors = []
    for uri in source.locations:
        try:
            location = locate(uri, source.include)
            for remote in retry(location.list, settings):
                mirrors[remote.name].append(Mirror(location, remote))
        except (NotFoundError, TransientError) as error:
            errors.append(str(error))
    for file, uris in source.files.items():
        mirrors[file] += [Mirror(locate(uri, ("*",)), RemoteFile(file, uri)) for uri in uris]
    if not mirrors:
        raise ValueError(
            f"sources.{name}: no file matches include {list(source.include)}: "
            f"{'; '.join(errors) or 'the folders are empty'}"
        )
    return [SourceFile(file, tuple(found)) for file, found in sorted(mirrors.items())]


def group_files(files: Sequence[SourceFile], bundle_files: int) -> list[Item]:
    """Groups files into download items: one file each, or a bundle of small ones.

    The small files of a folder that has more than `bundle_files` of them become bundles of at most `BUNDLE_BYTES` and
    `BUNDLE_FILES`, in order of name.
    """
    folders: dict[str, list[SourceFile]] = defaultdict(list)
    for file in files:
        folders[str(PurePosixPath(file.name).parent)].append(file)
    items = []
    for folder, members in sorted(folders.items()):
        small = list(filter(_is_small, members))
        bundled = small if len(small) > bundle_files else []
        names = {file.name for file in bundled}
        items += [Item(file.name, (file,)) for file in members if file.name not in names]
        items += [Item(_bundle_name(folder, n), tuple(part), bundle=True) for n, part in enumerate(_split(bundled))]
    return items


def _is_small(file: SourceFile) -> bool:
    return file.name.lower().endswith(BUNDLED_SUFFIXES) and (file.size or 0) < BUNDLE_BYTES // 64


def _bundle_name(folder: str, number: int) -> str:
    return f"{'' if folder == '.' else folder + '/'}{number:05d}{BUNDLE}"


def _split(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    piece: list[SourceFile] = []
    size = 0
    for file in files:
        if piece and (size + (file.size or 0) > BUNDLE_BYTES or len(piece) >= BUNDLE_FILES):
            yield piece
            piece, size = [], 0
        piece.append(file)
        size += file.size or 0
    if piece:
        yield piece
