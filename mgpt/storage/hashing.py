"""The one hash of the project: sha256 over bytes, files, folders and JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_CACHES = ("__pycache__", ".pytest_cache")  # folders that Python makes: part of no content


def sha256_bytes(data: bytes) -> str:
    """Returns the sha256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Returns the sha256 of a local file, in hexadecimal; reads it in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the sha256 of a JSON value in canonical form: sorted keys, no spaces, ASCII."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def folder_files(path: Path) -> list[Path]:
    """Returns the files below a folder in the order of their names, or the file itself; without Python's caches."""
    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if not set(_CACHES) & set(file.parts) and file.suffix != ".pyc")
    return sorted((file for file in inside if file.is_file()), key=lambda file: file.relative_to(path))


def content_hashes(path: Path) -> dict[str, str]:
    """Returns the sha256 of each file below a folder by relative name, or of one file under its own name."""
    base = path if path.is_dir() else path.parent
    return {file.relative_to(base).as_posix(): sha256_file(file) for file in folder_files(path)}


def content_digest(path: Path) -> str:
    """Returns the digest of a folder's content, or of one file under its name (see `digest_of`)."""
    return digest_of(content_hashes(path))


def digest_of(hashes: Mapping[str, str]) -> str:
    """Returns the digest of a set of files: sha256 over lines of `NAME SHA256`, sorted by name."""
    return sha256_bytes("\n".join(f"{name} {hashes[name]}" for name in sorted(hashes, key=PurePosixPath)).encode())
