"""Manifests: which files a stage made, each with its size and sha256, so that one altered byte is found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt.storage.store import Store, sha256_bytes, write_atomic
from mgpt.storage.types import Entry


@dataclass(frozen=True)
class Manifest:
    """Which files a stage made. It is the DVC output; the bytes stay in the store."""

    entries: list[Entry]

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
        if twice:
            raise ValueError(f"a manifest names each file once; twice: {', '.join(twice[:5])}")
        object.__setattr__(self, "entries", sorted(self.entries, key=lambda entry: entry.name))

    @property
    def digest(self) -> str:
        """sha256 over names, sizes, hashes and meta: equal content has equal digest, wherever it is stored."""
        rows = [[entry.name, entry.size, entry.sha256, entry.meta] for entry in self.entries]
        return sha256_bytes(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode())

    def save(self, path: str | Path) -> None:
        """Writes the manifest as JSON."""
        content = {"digest": self.digest, "entries": [asdict(entry) for entry in self.entries]}
        write_atomic(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Reads a saved manifest. Raises ValueError where it is not one or was edited by hand."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            manifest = cls([Entry(**entry) for entry in content["entries"]])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest ({error}); run the stage that makes it again") from error
        if manifest.digest != content.get("digest"):
            raise ValueError(
                f"{path}: entries do not match the manifest's digest, so it was edited; run the stage that makes it again"
            )
        return manifest

    def select(self, **meta: Any) -> list[Entry]:
        """Entries whose meta has all of the given values."""
        return [entry for entry in self.entries if all(entry.meta.get(key) == value for key, value in meta.items())]

    def verify(self) -> None:
        """Reads every file and compares size and sha256. Raises ValueError that names every file that differs or is gone."""
        wrong = list(_differences(self.entries))
        if wrong:
            shown = "\n  ".join(wrong[:20])
            raise ValueError(
                f"{len(wrong)} of {len(self.entries)} files differ from their manifest:\n  {shown}\nrun the stage that made them again"
            )


def _differences(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        try:
            digest, size = Store(entry.uri.rsplit("/", 1)[0]).digest(entry.uri)
        except FileNotFoundError:
            yield f"{entry.name}: gone ({entry.uri})"
            continue
        if (digest, size) != (entry.sha256, entry.size):
            yield f"{entry.name}: {size} bytes with sha256 {digest[:12]}, not {entry.size} with {entry.sha256[:12]} ({entry.uri})"
