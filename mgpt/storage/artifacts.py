"""Finished work in the store: what a stage with a given fingerprint gave, kept by content, so that no work is done twice and a job's outputs
travel home.

`content/<digest>/` holds one output (a file or a folder); `stages/<fingerprint>.json` says which outputs the finished stage has. The record is
written last and only where none is: of two processes that finish the same work, one record stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from mgpt.storage import Store, sha256_file

RECORD = "run.json"


def content_digest(path: Path) -> str:
    """sha256 over the bytes and names below a folder, or of one file under its name."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    lines = "\n".join(f"{file.relative_to(base).as_posix()} {sha256_file(file)}" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def keep(store: Store, path: Path) -> str:
    """Copies a file or folder into the store unless it is there; returns its digest."""
    digest = content_digest(path)
    marker = store.uri("content", f"{digest}.json")
    if not store.exists(marker):
        if path.is_dir():
            store.put_folder(path, store.uri("content", digest))
        else:
            store.put_file(path, store.uri("content", digest, path.name))
        store.write(marker, json.dumps({"name": path.name, "folder": path.is_dir()}).encode())
    return digest


def fetch(store: Store, digest: str, path: Path) -> None:
    """Puts kept content at a local path. Raises ValueError when what the store holds is not what was kept; it is deleted then."""
    try:
        marker = json.loads(store.read(store.uri("content", f"{digest}.json")))
    except FileNotFoundError as error:
        raise ValueError(f"{store.uri('content', digest)} is gone") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if marker["folder"]:
        path.mkdir(exist_ok=True)
        for uri in store.list(store.uri("content", digest)):
            _fetch_file(store, uri, path / uri.removeprefix(store.uri("content", digest) + "/"))
    else:
        _fetch_file(store, store.uri("content", digest, marker["name"]), path)
    if content_digest(path) != digest:
        store.delete(store.uri("content", f"{digest}.json"))
        store.delete(store.uri("content", digest))
        raise ValueError(f"{store.uri('content', digest)} was altered: it was not what the stage wrote")


def finish(store: Store, fingerprint: str, folder: Path, outputs: list[str]) -> None:
    """Records that the work is done, with the named files and folders of `folder` as its outputs."""
    record = {"fingerprint": fingerprint, "outputs": {name: keep(store, folder / name) for name in sorted(outputs)}}
    store.put_if_absent(_record(store, fingerprint), json.dumps(record, indent=1, sort_keys=True).encode())


def finished(store: Store, fingerprint: str) -> dict[str, str] | None:
    """The digests of a finished stage's outputs by name, or None."""
    try:
        outputs: dict[str, str] = json.loads(store.read(_record(store, fingerprint)))["outputs"]
    except FileNotFoundError:
        return None
    return outputs


def forget(store: Store, fingerprint: str) -> None:
    """Drops the record, so that the work is done again."""
    store.delete(_record(store, fingerprint))


def bring(store: Store, fingerprint: str, outputs: Mapping[str, str], staging: Path, target: Path) -> None:
    """Puts a finished stage's outputs at `target` in one step.

    Raises:
        ValueError: they are not what the stage wrote. The record is dropped then, so that the next run does the work again.
    """
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name, digest in outputs.items():
            fetch(store, digest, staging / name)
    except (ValueError, FileNotFoundError) as error:
        forget(store, fingerprint)
        raise ValueError(
            f"the finished work {fingerprint} cannot be brought back: {error}; run the stage again to do the work again"
        ) from error
    replace(staging, target)


def replace(staging: Path, target: Path) -> None:
    """Makes `staging` the folder `target`, whatever was there: complete results or none."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(target)


def _record(store: Store, fingerprint: str) -> str:
    return store.uri("stages", f"{fingerprint}.json")


def _fetch_file(store: Store, uri: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.open(uri) as source, open(path, "wb") as sink:
        shutil.copyfileobj(source, sink)
