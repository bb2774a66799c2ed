"""Artifacts: finished work in the store, kept by content, so that no work is done twice and a job's outputs travel home.

`content/<digest>/` holds one output (a file or a folder); `stages/<fingerprint>.json` lists the outputs of a finished
stage. The record is written last and only where none is: of two processes that finish the same work, one record stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgpt.storage.store import Store, sha256_file

RECORD = "run.json"


def content_digest(path: Path) -> str:
    """Returns the sha256 over the bytes and names below a folder, or of one file under its name."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    lines = "\n".join(f"{file.relative_to(base).as_posix()} {sha256_file(file)}" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def replace_folder(staging: Path, target: Path) -> None:
    """Makes `staging` the folder `target`, whatever was there: complete results or none."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(target)


@dataclass(frozen=True)
class ArtifactStore:
    """Content-addressed outputs of finished stages, below a store's root."""

    store: Store

    def uri(self, digest: str) -> str:
        """Returns the URI of the folder that holds the content with this digest."""
        return self.store.uri("content", digest)

    def put(self, path: Path) -> str:
        """Copies a file or folder into the store unless it is there; returns its digest."""
        digest = content_digest(path)
        if not self.store.exists(self._marker(digest)):
            if path.is_dir():
                self.store.put_folder(path, self.uri(digest))
            else:
                self.store.put_file(path, f"{self.uri(digest)}/{path.name}")
            marker = {"name": path.name, "folder": path.is_dir()}
            self.store.write(self._marker(digest), json.dumps(marker).encode())
        return digest

    def get(self, digest: str, path: Path) -> None:
        """Copies content to a local path.

        Raises ValueError when what the store holds is not what was put there; it is deleted then.
        """
        try:
            marker = json.loads(self.store.read(self._marker(digest)))
        except FileNotFoundError as error:
            raise ValueError(f"{self.uri(digest)} is gone") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        if marker["folder"]:
            path.mkdir(exist_ok=True)
            for uri in self.store.list(self.uri(digest)):
                self._copy(uri, path / uri.removeprefix(self.uri(digest) + "/"))
        else:
            self._copy(f"{self.uri(digest)}/{marker['name']}", path)
        if content_digest(path) != digest:
            self.store.delete(self._marker(digest))
            self.store.delete(self.uri(digest))
            raise ValueError(f"{self.uri(digest)} was altered: it is not what the stage wrote")

    def commit(self, fingerprint: str, folder: Path, outputs: Sequence[str]) -> None:
        """Records that the work is finished, with the named files and folders of `folder` as its outputs."""
        record = {"fingerprint": fingerprint, "outputs": {name: self.put(folder / name) for name in sorted(outputs)}}
        self.store.put_if_absent(self._record(fingerprint), json.dumps(record, indent=1, sort_keys=True).encode())

    def outputs(self, fingerprint: str) -> dict[str, str] | None:
        """Returns the digests of a finished stage's outputs by name, or None where it is not finished."""
        try:
            outputs: dict[str, str] = json.loads(self.store.read(self._record(fingerprint)))["outputs"]
        except FileNotFoundError:
            return None
        return outputs

    def invalidate(self, fingerprint: str) -> None:
        """Drops the record, so that the work is done again."""
        self.store.delete(self._record(fingerprint))

    def restore(self, fingerprint: str, outputs: Mapping[str, str], staging: Path, target: Path) -> None:
        """Puts a finished stage's outputs at `target` in one step.

        Raises:
            ValueError: they are not what the stage wrote. The record is dropped then, so that the next run repeats
                the work.
        """
        shutil.rmtree(staging, ignore_errors=True)
        try:
            for name, digest in outputs.items():
                self.get(digest, staging / name)
        except (ValueError, FileNotFoundError) as error:
            self.invalidate(fingerprint)
            raise ValueError(
                f"the finished work {fingerprint} cannot be restored: {error}; run the stage again to repeat the work"
            ) from error
        replace_folder(staging, target)

    def _record(self, fingerprint: str) -> str:
        return self.store.uri("stages", f"{fingerprint}.json")

    def _marker(self, digest: str) -> str:
        return self.store.uri("content", f"{digest}.json")

    def _copy(self, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.store.open(uri) as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink)
