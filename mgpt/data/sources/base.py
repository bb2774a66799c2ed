"""What every reader of a dataset format shares: its card, the parts it reads, and what it says of records that it cannot give."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

from PIL import Image

from mgpt.data.boxes import Box
from mgpt.data.sample import Sample, Turn
from mgpt.storage import Store, is_remote

Reason = Literal[
    "missing image",  # the record names a picture that is not there
    "missing field",  # a key that the format has is absent or of another type
    "missing box",  # a phrase or reference without a box
    "missing answer",  # a question nobody answered
    "outside its folder",  # a path or link that leaves the dataset's folder
    "unreadable record",  # the record breaks the format: invalid JSON or UTF-8, a box token without a box, ...
    "unreadable file",  # the rest of the file cannot be read
]
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Card:
    """What a dataset is and where it comes from, for `mgpt data sources` and the data card.

    Attributes:
        name: key in `READERS`; the `dataset` of its samples.
        title: its full name.
        kind: row of the stage table (weakly labelled caption, REC, VQA, ...) or "evaluation".
        tasks: tasks of its samples.
        formats: files and layout below the root.
        size: records as published.
        licence: as the source states it, or "not stated".
        links, mirrors: official locations first, then copies.
        citation: paper, short.
        normalised_roles: turns that the original passes through its text normalisation (`mgpt.data.text.normalise_sample`).
        notes: what a user must know: dead links, traps.
    """

    name: str
    title: str
    kind: str
    tasks: tuple[str, ...]
    formats: str
    size: str
    licence: str
    links: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    citation: str = ""
    normalised_roles: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class Part:
    """One file to read, the unit of parallel work: `path` below `root` (a folder or s3:// prefix), pictures below `images`."""

    root: str
    path: str
    split: str
    images: str


@dataclass(frozen=True)
class Problem:
    """A record (or the rest of a file) that gave no sample. `source` is `path#key`, as in a sample."""

    dataset: str
    split: str
    source: str
    reason: Reason
    detail: str


class Refused(ValueError):
    """A record that cannot become a sample; becomes a `Problem`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Reader(ABC):
    """Reads one dataset in its published format: `card`, `files`, `records`."""

    def __init__(self, card: Card) -> None:
        self.card = card

    @abstractmethod
    def files(self, root: str, images: str | None = None) -> list[Part]:
        """The files of the dataset below `root`, sorted; pictures are looked for below `images`, by default `root`.

        Raises:
            ValueError: there is none; the message says what was expected.
        """

    @abstractmethod
    def records(self, parts: Iterable[Part]) -> Iterator[Sample | Problem]:
        """Samples of the parts in file order, and a problem for each record that gives none. Streams; never raises for what is in the
        files."""

    def _sample(self, split: str, source: str, task: str, turns: tuple[Turn, ...], picture: Picture | None, **fields: Any) -> Sample:
        shown = picture or Picture(None, 0, 0)
        fields.setdefault("licence", self.card.licence)
        return Sample.create(
            dataset=self.card.name, split=split, task=task, image=shown.data, width=shown.width, height=shown.height, turns=turns,
            source=source, **fields
        )

    def _problem(self, split: str, source: str, error: Exception) -> Problem:
        if isinstance(error, Refused):
            return Problem(self.card.name, split, source, error.reason, str(error))
        if isinstance(error, KeyError):
            return Problem(self.card.name, split, source, "missing field", f"the record has no {error}")
        return Problem(self.card.name, split, source, "unreadable record", f"{type(error).__name__}: {error}"[:300])


@dataclass(frozen=True)
class Picture:
    """Encoded bytes and the size that the file's header states (0 x 0 where it states none)."""

    data: bytes | None
    width: int
    height: int

    @classmethod
    def of(cls, data: bytes) -> Picture:
        return cls(data, *header_size(data))


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height by the file's header, without decoding; (0, 0) where the header cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.size
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
            raise Refused("outside its folder", str(error)) from error
        if not is_remote(uri) and not os.path.realpath(uri).startswith(os.path.realpath(self.store.root) + os.sep):
            raise Refused("outside its folder", f"{path} is a link to {os.path.realpath(uri)}; copy the file into the folder")
        return uri

    def names(self) -> list[str]:
        """Every file below the root, as paths relative to it."""
        return [uri.removeprefix(self.store.root + "/") for uri in self.store.list(self.store.root)]

    def read(self, path: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError, Refused."""
        return self.store.read(self.uri(path))


class Images:
    """Pictures of a dataset by name, tried at several places; the last few are kept, since neighbours often share one."""

    def __init__(self, root: str) -> None:
        self.folder = Folder(root)
        self._cached = lru_cache(maxsize=16)(self._load)

    def get(self, *candidates: str) -> Picture:
        """The picture at the first candidate path that is there.

        Raises:
            Refused: none is there ("missing image"), or a path leaves the folder.
        """
        return self._cached(candidates)

    def _load(self, candidates: tuple[str, ...]) -> Picture:
        for path in candidates:
            try:
                return Picture.of(self.folder.read(path))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
        raise Refused("missing image", f"no file {' or '.join(candidates)} below {self.folder.root}")


def places(path: str, *folders: str) -> tuple[str, ...]:
    """Where a picture named `path` may lie: as written, below each folder, and by its bare name. The original appended the split's name
    to the image folder against its own documentation (defect T12); looking at each place serves both layouts."""
    name = PurePosixPath(path).name
    found = [path, *(f"{folder}/{path}" for folder in folders), *(f"{folder}/{name}" for folder in folders), name]
    return tuple(dict.fromkeys(found))


def split_name(text: str, default: str = "train") -> str:
    """The split that a file's name states: train, validation, test, testA, testdev, ...; `default` where it states none."""
    words = [word for part in PurePosixPath(text).parts for word in part.replace(".", "_").replace("-", "_").split("_")]
    for word in reversed(words):
        if word in ("train", "validation", "test", "testA", "testB", "testdev", *SPLIT_NAMES):
            return SPLIT_NAMES.get(word, word)
    return default


def pixels_xywh(values: Any) -> Box:
    """A box given as left, top, width, height.

    Raises:
        Refused: it is not four numbers.
    """
    try:
        x, y, width, height = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise Refused("missing box", f"{values!r} is not a box [x, y, width, height]") from error
    return Box(x, y, x + width, y + height)


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text field.

    Raises:
        Refused: it is absent or not a text.
    """
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        raise Refused("missing field", f"{key!r} is {value!r}; a text was expected")
    return value
