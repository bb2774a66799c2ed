"""The files of a training checkpoint, and whether they are what was written. Needs no torch, so that a driver checks them in no time.

Contract: `state.json` names the sha256 of each tensor file and of its own content, and is written last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mgpt.storage import sha256_bytes, sha256_file

TENSORS = ("trainables", "optimiser")
HEAD = "state.json"


class DamagedError(ValueError):
    """A checkpoint's files are not what was written."""


def tensor_file(folder: str | Path, part: str) -> Path:
    """Where a part's tensors lie in a checkpoint."""
    return Path(folder) / f"{part}.safetensors"


def write_head(folder: str | Path, head: dict[str, Any]) -> None:
    """Writes `state.json` of a checkpoint whose tensor files are there."""
    files = {part: sha256_file(tensor_file(folder, part)) for part in TENSORS}
    content = {"head": head, "sha256": {**files, "head": _digest(head)}}
    (Path(folder) / HEAD).write_text(json.dumps(content))


def read_head(folder: str | Path) -> dict[str, Any]:
    """The head of a checkpoint whose files are all as they were written. Raises DamagedError when one is missing or altered."""
    try:
        content = json.loads((Path(folder) / HEAD).read_text())
        head, expected = content["head"], content["sha256"]
        found = {part: sha256_file(tensor_file(folder, part)) for part in TENSORS} | {"head": _digest(head)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"checkpoint {folder}: incomplete ({type(error).__name__}: {error})") from error
    altered = [part for part, digest in found.items() if expected.get(part) != digest]
    if altered:
        names = ", ".join(HEAD if part == "head" else tensor_file("", part).name for part in altered)
        raise DamagedError(f"checkpoint {folder}: altered since it was written ({names}: another sha256)")
    return dict(head)


def _digest(head: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(head, sort_keys=True).encode())
