"""Artifacts: finished work in the store by content, so that no work is repeated and a job's outputs travel home.

`content/<digest>/` holds one output (a file or a folder), and `content/<digest>.json` its files with their sha256; the
latter is written last, so that content without it is an upload that was cut off. `stages/<fingerprint>.json` lists the
outputs of a finished stage. It is written last and only where none is: of two processes that finish the same work, one
record stays.

Trained weights live here and nowhere else in the store: runs, registered versions and results refer to their digest.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.storage.filesystem import is_remote
from mgpt.storage.hashing import content_hashes, digest_of, sha256_file
from mgpt.storage.names import CONTENT, FINISHED_STAGES, FORMAT_FILE, RUNS
from mgpt.storage.store import Store

FORMAT = 2  # of the layout described above; 1 had no format file, and copies of trained weights in runs/ and models/
_EARLIER = (CONTENT, FINISHED_STAGES, RUNS, "models")  # folders that a store without a format file cannot have


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
        return self.store.uri(CONTENT, digest)

    def put(self, path: Path) -> str:
        """Copies a file or folder into the store unless it is there; returns its digest."""
        hashes = content_hashes(path)
        digest = digest_of(hashes)
        if not self.store.exists(self._index(digest)):
            base = path if path.is_dir() else path.parent
            for name in hashes:
                self.store.put_file(base / name, f"{self.uri(digest)}/{name}")
            index = {"name": path.name, "folder": path.is_dir(), "files": hashes}
            self.store.write(self._index(digest), json.dumps(index, indent=1, sort_keys=True).encode())
        return digest

    def get(self, digest: str, path: Path) -> None:
        """Copies content to a local path, in place of what is there.

        Raises ValueError when the content is gone, or is not what was put there (it is deleted then).
        """
        index = self._read_index(digest)
        if path.is_dir():
            shutil.rmtree(path)
        for name, expected in index["files"].items():
            target = path / name if index["folder"] else path
            try:
                self.store.fetch_file(f"{self.uri(digest)}/{name}", target)
                whole = sha256_file(target) == expected
            except FileNotFoundError:
                whole = False
            if not whole:
                self.delete(digest)
                raise ValueError(f"{self.uri(digest)}/{name} was altered or removed: it is not what the stage wrote")

    def local_folder(self, digest: str) -> Path:
        """Returns a local folder with the content: the store's own if it is local, else a copy.

        The copy is downloaded once per machine. Existing files are not verified; `verify` does that. Raises ValueError
        when the content is gone.
        """
        index = self._read_index(digest)
        if not is_remote(self.store.root):
            return Path(self.uri(digest))
        target = Path(tempfile.gettempdir()) / f"mgpt-{os.getuid()}" / digest
        if not target.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=target.parent))
            self.get(digest, part / "content" if index["folder"] else part / "content" / index["name"])
            try:
                (part / "content").rename(target)
            except OSError:  # another process was faster
                assert target.exists()
            shutil.rmtree(part)
        return target

    def verify(self, digest: str) -> list[str]:
        """Reads every file of a content and compares it; returns the files' URIs.

        Raises ValueError that names the files which are gone, were altered or were added.
        """
        expected: dict[str, str] = self._read_index(digest)["files"]
        prefix = self.uri(digest) + "/"
        found = {uri.removeprefix(prefix): self.store.digest(uri)[0] for uri in self.store.list(self.uri(digest))}
        if found != expected or digest_of(expected) != digest:
            wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)) or [
                "its index"
            ]
            raise ValueError(
                f"{self.uri(digest)}: gone, altered or added: {', '.join(wrong)}; re-run the stage that made it"
            )
        return [prefix + name for name in sorted(expected)]

    def delete(self, digest: str) -> None:
        """Removes content, its index first, so that a cut-off deletion leaves nothing that counts."""
        self.store.delete(self._index(digest))
        self.store.delete(self.uri(digest))

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
        """Drops the record of finished work, so that the next run repeats it."""
        self.store.delete(self._record(fingerprint))

    def restore(self, fingerprint: str, outputs: Mapping[str, str], staging: Path, target: Path) -> None:
        """Puts a finished stage's outputs at `target` in one step.

        Raises:
            ValueError: they are not what the stage wrote. The record is dropped then, so that the next run repeats the
            work.
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

    def check_format(self, create: bool = True) -> None:
        """Checks that the store has this program's layout; writes the format file into an empty store where `create` is
        set.

        Raises:
            ValueError: the store was written by an earlier or a later version; names both.
        """
        uri = self.store.uri(FORMAT_FILE)
        try:
            found = int(json.loads(self.store.read(uri))["format"])
        except FileNotFoundError:
            found = 1 if any(self.store.exists(self.store.uri(name)) for name in _EARLIER) else FORMAT
            if found == FORMAT and create:
                self.store.put_if_absent(uri, json.dumps({"format": FORMAT}).encode())
        if found != FORMAT:
            age, fix = ("an earlier", "remove it") if found < FORMAT else ("a later", "update mgpt")
            raise ValueError(
                f"storage.root: {self.store.root} has store format {found} of {age} version of mgpt; this one uses "
                f"format {FORMAT}. Set storage.root to a new folder, or {fix}"
            )

    def _read_index(self, digest: str) -> dict[str, Any]:
        try:
            index: dict[str, Any] = json.loads(self.store.read(self._index(digest)))
        except FileNotFoundError as error:
            raise ValueError(f"{self.uri(digest)} is gone; re-run the stage that made it") from error
        return index

    def _record(self, fingerprint: str) -> str:
        return self.store.uri(FINISHED_STAGES, f"{fingerprint}.json")

    def _index(self, digest: str) -> str:
        return self.store.uri(CONTENT, f"{digest}.json")
