"""The files of a training checkpoint and their verification. Needs no torch, so that a driver can check them quickly.

`state.json` is written last; it holds the sha256 of each tensor file and of its own content.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mgpt.storage import sha256_bytes, sha256_file

TENSORS = ("parameters", "optimizer")
HEAD = "state.json"


class CorruptCheckpointError(ValueError):
    """A checkpoint's files are missing or not as they were written."""


def tensor_file(folder: str | Path, part: str) -> Path:
    """Returns the path of a part's tensors in a checkpoint."""
    return Path(folder) / f"{part}.safetensors"


def write_head(folder: str | Path, head: dict[str, Any]) -> None:
    """Writes `state.json` of a checkpoint whose tensor files exist."""
    files = {part: sha256_file(tensor_file(folder, part)) for part in TENSORS}
    content = {"head": head, "sha256": {**files, "head": _digest(head)}}
    (Path(folder) / HEAD).write_text(json.dumps(content))


def read_head(folder: str | Path) -> dict[str, Any]:
    """Verifies a checkpoint and returns its head. Raises CorruptCheckpointError when a file is missing or altered."""
    try:
        content = json.loads((Path(folder) / HEAD).read_text())
        head, expected = content["head"], content["sha256"]
        found = {part: sha256_file(tensor_file(folder, part)) for part in TENSORS} | {"head": _digest(head)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"checkpoint {folder}: incomplete ({type(error).__name__}: {error})") from error
    altered = [part for part, digest in found.items() if expected.get(part) != digest]
    if altered:
        names = ", ".join(HEAD if part == "head" else tensor_file("", part).name for part in altered)
        raise CorruptCheckpointError(f"checkpoint {folder}: altered since it was written (sha256 of {names} differs)")
    return dict(head)


def _digest(head: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(head, sort_keys=True).encode())
