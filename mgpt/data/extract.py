"""A downloaded source as a folder that readers can read: archives opened safely, once a machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mgpt.data.archives import BUNDLE, RejectedMember, unpack
from mgpt.storage import Entry, Manifest, Store, is_remote

READY = ".mgpt-unpacked.json"


def cache_root(store: Store) -> Path:
    """Where unpacked sources lie: below a local store, else in `MGPT_CACHE` or the user's cache folder."""
    if not is_remote(store.root):
        return Path(store.root) / "unpacked"
    return Path(os.environ.get("MGPT_CACHE", Path.home() / ".cache" / "mgpt")) / "unpacked"


def source_folder(manifest: Manifest, source: str, store: Store) -> tuple[str, list[RejectedMember]]:
    """The folder (or `s3://` prefix) that holds the files of `source`, and the archive members that were refused.

    A source without archives is read where it lies. Others are copied and unpacked under a name made of their digests, so a folder is
    whole or absent and never stale.

    Raises:
        ValueError: the source is not in the manifest.
    """
    entries = manifest.select(source=source)
    if not entries:
        raise ValueError(f"sources.{source}: nothing of it is in the download manifest; run the download stage again")
    if not any(entry.meta["unpack"] for entry in entries):
        return _common_folder(entries, source), []
    key = hashlib.sha256(json.dumps([[entry.name, entry.sha256] for entry in entries]).encode()).hexdigest()[:24]
    folder = cache_root(store) / f"{source}-{key}"
    if not (folder / READY).exists():
        _build(entries, source, store, folder)
    return str(folder), [RejectedMember(**refused) for refused in json.loads((folder / READY).read_text(encoding="utf-8"))]


def backbone_folders(manifest: Manifest, named: Mapping[str, str | None], store: Store) -> dict[str, str]:
    """Folder or URI of each base by part; `named` says `SOURCE/FOLDER` for each, None for a part that a model lacks."""
    folders = {}
    for part, name in named.items():
        if name is not None:
            source, _, below = name.partition("/")
            folders[part] = f"{source_folder(manifest, source, store)[0].rstrip('/')}/{below}".rstrip("/")
    return folders


def _common_folder(entries: list[Entry], source: str) -> str:
    first = entries[0]
    return first.uri.removesuffix("/" + first.name.removeprefix(f"{source}/"))


def _build(entries: list[Entry], source: str, store: Store, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        refused = [problem for entry in entries for problem in _place(entry, source, store, building)]
        (building / READY).write_text(json.dumps([asdict(problem) for problem in refused]), encoding="utf-8")
        building.rename(folder)
    except OSError:
        if not (folder / READY).exists():  # else another process was faster with the same content
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _place(entry: Entry, source: str, store: Store, folder: Path) -> list[RejectedMember]:
    name = entry.name.removeprefix(f"{source}/")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open(entry.uri) as file, open(target, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    if not entry.meta["unpack"]:
        return []
    try:
        return _open_archive(target, name)
    except ValueError as error:
        return [RejectedMember(name, f"damaged archive: {error}")]
    finally:
        target.unlink()


def _open_archive(archive: Path, name: str) -> list[RejectedMember]:
    # A bundle of ours fills the folder that it was made from; a stranger's archive fills the one that it is in.
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".opening-") as opening:
        refused = unpack(archive, Path(opening))
        _merge(Path(opening), archive.parent)
    return (
        [RejectedMember(f"{name}/{problem.member}", problem.reason) for problem in refused]
        if not name.endswith(BUNDLE)
        else refused
    )


def _merge(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
