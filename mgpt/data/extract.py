"""Local folders for downloaded sources: archives are extracted once per machine."""

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

READY = ".mgpt-unpacked.json"  # lists the rejected members; written last, so that its presence marks a complete folder


def cache_root(store: Store) -> Path:
    """Returns the folder for extracted sources: in a local store, else in `MGPT_CACHE` or the user's cache folder."""
    if not is_remote(store.root):
        return Path(store.root) / "unpacked"
    return Path(os.environ.get("MGPT_CACHE", Path.home() / ".cache" / "mgpt")) / "unpacked"


def source_folder(manifest: Manifest, source: str, store: Store) -> tuple[str, list[RejectedMember]]:
    """Returns the folder (or `s3://` prefix) with the files of `source`, and the archive members that were rejected.

    A source without archives is read in place. Any other is copied and extracted into a folder named by a hash of its
    entries, so that the folder is either complete or absent, and never stale.

    Raises:
        ValueError: the source is not in the manifest.
    """
    entries = manifest.select(source=source)
    if not entries:
        raise ValueError(f"sources.{source}: the download manifest has no files of it; run the download stage again")
    if not any(entry.meta["unpack"] for entry in entries):
        first = entries[0]
        return first.uri.removesuffix("/" + first.name.removeprefix(f"{source}/")), []
    key = hashlib.sha256(json.dumps([[entry.name, entry.sha256] for entry in entries]).encode()).hexdigest()[:24]
    folder = cache_root(store) / f"{source}-{key}"
    if not (folder / READY).exists():
        _build(entries, source, store, folder)
    rejected = json.loads((folder / READY).read_text(encoding="utf-8"))
    return str(folder), [RejectedMember(**member) for member in rejected]


def backbone_folders(manifest: Manifest, names: Mapping[str, str | None], store: Store) -> dict[str, str]:
    """Returns the folder or URI of each backbone by part.

    `names` holds `SOURCE/FOLDER` for each part, or None for a part that the model does not have.
    """
    folders = {}
    for part, name in names.items():
        if name is not None:
            source, _, below = name.partition("/")
            folders[part] = f"{source_folder(manifest, source, store)[0].rstrip('/')}/{below}".rstrip("/")
    return folders


def _build(entries: list[Entry], source: str, store: Store, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        rejected = [member for entry in entries for member in _copy_entry(entry, source, store, building)]
        (building / READY).write_text(json.dumps([asdict(member) for member in rejected]), encoding="utf-8")
        building.rename(folder)
    except OSError:
        if not (folder / READY).exists():  # otherwise another process has finished the same content first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _copy_entry(entry: Entry, source: str, store: Store, folder: Path) -> list[RejectedMember]:
    name = entry.name.removeprefix(f"{source}/")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open(entry.uri) as file, open(target, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    if not entry.meta["unpack"]:
        return []
    try:
        return _extract_in_place(target, name)
    except ValueError as error:
        return [RejectedMember(name, f"damaged archive: {error}")]
    finally:
        target.unlink()


def _extract_in_place(archive: Path, name: str) -> list[RejectedMember]:
    """Extracts an archive into the folder that it lies in."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".opening-") as opening:
        rejected = unpack(archive, Path(opening))
        for path in sorted(Path(opening).rglob("*")):
            if path.is_file():
                target = archive.parent / path.relative_to(opening)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    if name.endswith(BUNDLE):  # a bundle stands for the folder, so its own name means nothing to the user
        return rejected
    return [RejectedMember(f"{name}/{member.member}", member.reason) for member in rejected]
