"""What a source consists of, and how it travels: single files as they are, folders of many small files as tar
bundles.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mgpt.config.sources import SourceSettings
from mgpt.data.archives import BUNDLE
from mgpt.download.fetch import Mirror, Patience, persist
from mgpt.download.mirrors import Gone, Remote, Unreliable, locate

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".txt", ".xml", ".json")
BUNDLE_BYTES = 512 << 20


@dataclass(frozen=True)
class File:
    """A file of the source and the mirrors that have it, in order."""

    name: str
    mirrors: tuple[Mirror, ...]

    @property
    def size(self) -> int | None:
        return next((mirror.remote.size for mirror in self.mirrors if mirror.remote.size is not None), None)

    @property
    def stamp(self) -> str:
        """Changes when the file is known to have changed at its first location (size, time, object id)."""
        remote = self.mirrors[0].remote
        return f"{remote.uri}|{remote.size}|{remote.stamp}"


@dataclass(frozen=True)
class Item:
    """What becomes one object in the store: one file, or a bundle of several."""

    name: str
    files: tuple[File, ...]
    bundle: bool = False

    @property
    def stamp(self) -> str:
        return hashlib.sha256(json.dumps([[file.name, file.stamp] for file in self.files]).encode()).hexdigest()


def source_key(name: str, source: SourceSettings) -> str:
    """The folder of a source's bytes: what decides them, but not the mirrors added behind the first, so that
    adding one loses nothing.
    """
    content = source.model_dump(mode="json", include={"kind", "include", "sha256", "seed", "counts"})
    content["first"] = [*source.locations[:1], *(mirrors[0] for _, mirrors in sorted(source.files.items()))]
    return f"{name}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"


def list_files(name: str, source: SourceSettings, patience: Patience) -> list[File]:
    """Every file of the source with its mirrors, in order of name.

    Raises:
        ValueError: no location has a file that is wanted; the message holds what each said.
    """
    mirrors: dict[str, list[Mirror]] = defaultdict(list)
    problems = []
    for uri in source.locations:
        try:
            location = locate(uri, source.include)
            for remote in persist(location.list, patience):
                mirrors[remote.name].append(Mirror(location, remote))
        except (Gone, Unreliable) as error:
            problems.append(str(error))
    for file, uris in source.files.items():
        mirrors[file] += [Mirror(locate(uri, ("*",)), Remote(file, uri)) for uri in uris]
    if not mirrors:
        raise ValueError(
            f"sources.{name}: no file matches include {list(source.include)}: "
            f"{'; '.join(problems) or 'the folders are empty'}"
        )
    return [File(file, tuple(found)) for file, found in sorted(mirrors.items())]


def group(files: Sequence[File], bundle_files: int) -> list[Item]:
    """Files as items: a folder with more than `bundle_files` small files becomes bundles of at most 512 MB, in
    order of name.
    """
    folders: dict[str, list[File]] = defaultdict(list)
    for file in files:
        folders[str(PurePosixPath(file.name).parent)].append(file)
    items = []
    for folder, members in sorted(folders.items()):
        small = [
            file for file in members if file.name.lower().endswith(IMAGES) and (file.size or 0) < BUNDLE_BYTES // 64
        ]
        bundled = small if len(small) > bundle_files else []
        names = {file.name for file in bundled}
        items += [Item(file.name, (file,)) for file in members if file.name not in names]
        items += [Item(_bundle_name(folder, n), tuple(part), bundle=True) for n, part in enumerate(_pieces(bundled))]
    return items


def _bundle_name(folder: str, number: int) -> str:
    return f"{'' if folder == '.' else folder + '/'}{number:05d}{BUNDLE}"


def _pieces(files: Sequence[File]) -> Iterator[list[File]]:
    piece: list[File] = []
    size = 0
    for file in files:
        if piece and (size + (file.size or 0) > BUNDLE_BYTES or len(piece) >= 20_000):
            yield piece
            piece, size = [], 0
        piece.append(file)
        size += file.size or 0
    if piece:
        yield piece
