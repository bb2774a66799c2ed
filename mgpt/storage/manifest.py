"""Manifests: the files that a stage made, each with its size and sha256, so that one altered byte is found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mgpt.storage.hashing import sha256_json
from mgpt.storage.store import Store, write_atomic
from mgpt.storage.types import Entry

_SHOWN = 20  # files that an error names


@dataclass(frozen=True)
class Manifest:
    """The files that a stage made, in the order of their names. The manifest is the DVC output; the bytes stay in the
    store.
    """

    entries: list[Entry]

    def __post_init__(self) -> None:
        names = sorted(entry.name for entry in self.entries)
        twice = sorted({name for name, following in pairwise(names) if name == following})
        if twice:
            raise ValueError(f"a manifest names each file once; named twice: {', '.join(twice[:5])}")
        object.__setattr__(self, "entries", sorted(self.entries, key=lambda entry: entry.name))

    @property
    def digest(self) -> str:
        """sha256 over names, sizes, hashes and meta: equal content has equal digest, wherever it is stored."""
        return sha256_json([[entry.name, entry.size, entry.sha256, entry.meta] for entry in self.entries])

    def save(self, path: str | Path) -> None:
        """Writes the manifest as JSON."""
        content = {"digest": self.digest, "entries": [asdict(entry) for entry in self.entries]}
        write_atomic(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Reads a saved manifest. Raises ValueError where the file is none, or was edited by hand."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            manifest = cls([Entry(**entry) for entry in content["entries"]])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no manifest ({error}); re-run the stage that makes it") from error
        if manifest.digest != content.get("digest"):
            raise ValueError(f"{path} was edited: its entries do not match its digest; re-run the stage that makes it")
        return manifest

    def select(self, **meta: Any) -> list[Entry]:
        """Returns the entries whose meta has all of the given values."""
        return [entry for entry in self.entries if all(entry.meta.get(key) == value for key, value in meta.items())]

    def verify(self) -> None:
        """Reads every file and compares size and sha256. Raises ValueError naming those which differ or are gone."""
        wrong = list(_differences(self.entries))
        if wrong:
            shown = "\n  ".join(wrong[:_SHOWN])
            raise ValueError(
                f"{len(wrong)} of {len(self.entries)} files differ from their manifest:\n  {shown}\n"
                "re-run the stage that made them"
            )


def _differences(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        try:
            digest, size = Store(entry.uri.rsplit("/", 1)[0]).digest(entry.uri)
        except FileNotFoundError:
            yield f"{entry.name}: gone ({entry.uri})"
            continue
        if (digest, size) != (entry.sha256, entry.size):
            yield (
                f"{entry.name}: {size} bytes with sha256 {digest[:12]}, not {entry.size} with {entry.sha256[:12]} "
                f"({entry.uri})"
            )
