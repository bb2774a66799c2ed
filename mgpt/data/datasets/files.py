"""Files of a dataset's folder, its images, and the fields of its records; each fault with its reason."""

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
    "missing image",  # the record names an image that is not there
    "missing field",  # a key that the format has is absent or of another type
    "missing box",  # a phrase or reference without a box
    "missing answer",  # a question nobody answered
    "not used",  # the original leaves such records out, and so do we (the detail says which rule)
    "outside its folder",  # a path or link that leaves the dataset's folder
    "unreadable record",  # the record breaks the format: invalid JSON or UTF-8, a box token without a box, ...
    "unreadable file",  # the rest of the file cannot be read
]


class RecordError(ValueError):
    """A record that cannot become a sample; becomes a `Problem`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class SourceImage:
    """Encoded bytes, the size that the file's header states (0 x 0 where it states none), and the path where it lay."""

    data: bytes | None
    width: int
    height: int
    path: str = ""

    @classmethod
    def from_bytes(cls, data: bytes, path: str = "") -> SourceImage:
        return cls(data, *header_size(data), path)


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height by the file's header, without decoding; (0, 0) where the header cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # Pillow raises many kinds on damaged headers; curation names the damage
        return 0, 0


@dataclass(frozen=True)
class Folder:
    """Read-only files below a root, local or s3://; nothing outside is opened."""

    root: str
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", Store(self.root))

    def uri(self, path: str) -> str:
        """The URI of a path below the root.

        Raises:
            Refused: the path, or the link it is, leaves the root.
        """
        try:
            uri = self.store.uri(path)
        except ValueError as error:
            raise RecordError("outside its folder", str(error)) from error
        if not is_remote(uri) and not os.path.realpath(uri).startswith(os.path.realpath(self.store.root) + os.sep):
            raise RecordError(
                "outside its folder", f"{path} is a link to {os.path.realpath(uri)}; copy the file into the folder"
            )
        return uri

    def is_missing(self, path: str) -> bool:
        """Whether a local file is certainly not there: the quick look that spares the careful one."""
        return not is_remote(self.store.root) and ".." not in path and not Path(self.store.root, path).exists()

    def names(self) -> list[str]:
        """Every file below the root, as paths relative to it."""
        return [uri.removeprefix(self.store.root + "/") for uri in self.store.list(self.store.root)]

    def read(self, path: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError, Refused."""
        return self.store.read(self.uri(path))

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A file for reading from its beginning. Raises FileNotFoundError, Refused."""
        return self.store.open(self.uri(path))


class ImageFolder:
    """Images of a dataset by name, tried at several places; the last few are kept, since neighbours often share one."""

    def __init__(self, root: str) -> None:
        self.folder = Folder(root)
        self._cached = lru_cache(maxsize=16)(self._load)

    def get(self, *candidates: str) -> SourceImage:
        """The image at the first candidate path that is there.

        Raises:
            Refused: none is there ("missing image"), or a path leaves the folder.
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
    """Where an image named `path` may lie: as written, below each folder, and by its bare name. The original appended the split's name
    to the image folder against its own documentation (defect T12); looking at each place serves both layouts."""
    name = PurePosixPath(path).name
    found = [path, *(f"{folder}/{path}" for folder in folders), *(f"{folder}/{name}" for folder in folders), name]
    return tuple(dict.fromkeys(found))


def box_from_xywh(values: Any) -> Box:
    """A box given as left, top, width, height.

    Raises:
        Refused: it is not four numbers.
    """
    try:
        x, y, width, height = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise RecordError("missing box", f"{values!r} is not a box [x, y, width, height]") from error
    return Box(x, y, x + width, y + height)


def text_field(record: Mapping[str, Any], key: str) -> str:
    """A text field.

    Raises:
        Refused: it is absent or not a text.
    """
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        raise RecordError("missing field", f"{key!r} is {value!r}; a text was expected")
    return value


def text_list_field(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A field that is a list of texts.

    Raises:
        Refused: it is absent, or holds anything else.
    """
    values = record.get(key)
    if (
        not isinstance(values, Iterable)
        or isinstance(values, (str, Mapping))
        or not all(isinstance(value, str) for value in values)
    ):
        raise RecordError("missing field", f"{key!r} is {values!r:.80}; a list of texts was expected")
    return tuple(values)
