"""Access to the files and images of a dataset's folder, and typed access to fields of its records."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from PIL import Image

from mgpt.data.boxes import Box
from mgpt.storage import Store, is_remote

Reason = Literal[
    "missing image",  # the image does not exist
    "missing field",  # a required key is absent or of another type
    "missing box",  # a phrase or reference has no box
    "missing answer",  # a question has no answer, or an image no text
    "not used",  # the original excludes such records, and so does this reader; the detail names the rule
    "path outside the dataset's folder",  # a path or link leaves the dataset's folder
    "unreadable record",  # invalid JSON or UTF-8, a box token without a box, or other damage
    "unreadable file",  # the rest of the file cannot be read
]


class RecordError(ValueError):
    """Raised for a record that cannot become a sample; the reader turns it into a `RejectedRecord`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class SourceImage:
    """An encoded image with the size from its header (0 x 0 if unreadable) and its path."""

    data: bytes | None
    width: int
    height: int
    path: str = ""

    @classmethod
    def from_bytes(cls, data: bytes, path: str = "") -> SourceImage:
        """Reads the size from the header of encoded bytes."""
        return cls(data, *header_size(data), path)


def header_size(data: bytes) -> tuple[int, int]:
    """Returns width and height from the header, without decoding; (0, 0) if it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # Pillow raises many types on damaged headers; curation reports the damage
        return 0, 0


@dataclass(frozen=True)
class Folder:
    """Read-only access to the files below a root, local or s3://. Nothing outside the root is opened."""

    root: str
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", Store(self.root))

    def uri(self, path: str) -> str:
        """Returns the URI of a path below the root.

        Raises:
            RecordError: the path leaves the root, directly or as a link.
        """
        try:
            uri = self.store.uri(path)
        except ValueError as error:
            raise RecordError("path outside the dataset's folder", str(error)) from error
        if not is_remote(uri) and not os.path.realpath(uri).startswith(os.path.realpath(self.store.root) + os.sep):
            detail = f"{path} is a link to {os.path.realpath(uri)}; copy the file into the folder"
            raise RecordError("path outside the dataset's folder", detail)
        return uri

    def is_missing(self, path: str) -> bool:
        """Returns true if a local file certainly does not exist; a fast check before the exact one of `uri` and
        `read`.
        """
        return not is_remote(self.store.root) and ".." not in path and not Path(self.store.root, path).exists()

    def names(self) -> list[str]:
        """Returns the paths of all files below the root, relative to it."""
        return [uri.removeprefix(self.store.root + "/") for uri in self.store.list(self.store.root)]

    def read(self, path: str) -> bytes:
        """Reads a file. Raises FileNotFoundError, RecordError."""
        return self.store.read(self.uri(path))

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file for reading. Raises FileNotFoundError, RecordError."""
        return self.store.open(self.uri(path))


class ImageFolder:
    """Images of a dataset, found at the first of several candidate paths.

    The last few are cached, as consecutive records often share one.
    """

    def __init__(self, root: str) -> None:
        self.folder = Folder(root)
        self._cached = lru_cache(maxsize=16)(self._load)

    def get(self, *candidates: str) -> SourceImage:
        """Returns the image at the first candidate path that exists.

        Raises:
            RecordError: none exists ("missing image"), or a path leaves the folder.
        """
        return self._cached(candidates)

    def _load(self, candidates: tuple[str, ...]) -> SourceImage:
        for path in candidates:
            if self.folder.is_missing(path):
                continue
            try:
                return SourceImage.from_bytes(self.folder.read(path), path)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
        raise RecordError("missing image", f"no file {' or '.join(candidates)}")


def candidate_paths(path: str, *folders: str) -> tuple[str, ...]:
    """Returns the paths at which an image named `path` may be: as given, below each folder, and by its file name alone.

    The original appended the split's name to the image folder, contrary to its documentation (defect T12); trying all
    candidates supports both layouts.
    """
    name = PurePosixPath(path).name
    found = [path, *(f"{folder}/{path}" for folder in folders), *(f"{folder}/{name}" for folder in folders), name]
    return tuple(dict.fromkeys(found))


def box_from_xywh(values: Any) -> Box:
    """Converts left, top, width, height to a box.

    Raises:
        RecordError: the values are not four numbers.
    """
    try:
        x, y, width, height = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise RecordError("missing box", f"{values!r} is not a box [x, y, width, height]") from error
    return Box(x, y, x + width, y + height)


def text_field(record: Mapping[str, Any], key: str) -> str:
    """Returns a text field.

    Raises:
        RecordError: it is absent or not a text.
    """
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        raise RecordError("missing field", f"{key!r} is {value!r}; a text was expected")
    return value


def text_list_field(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns a field that is a list of texts.

    Raises:
        RecordError: it is absent or not a list of texts.
    """
    values = record.get(key)
    if not isinstance(values, Iterable) or isinstance(values, (str, Mapping)):
        raise RecordError("missing field", f"{key!r} is {values!r:.80}; a list of texts was expected")
    texts = tuple(values)
    if not all(isinstance(text, str) for text in texts):
        raise RecordError("missing field", f"{key!r} is {values!r:.80}; a list of texts was expected")
    return texts
