"""What every reader of a dataset format shares: its card, the parts it reads, and what it says of records that it cannot give."""

from __future__ import annotations

import copy
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from mgpt.data.boxes import Box
from mgpt.data.datasets.files import Folder, ImageFolder, Reason, RecordError, SourceImage
from mgpt.data.types import Sample, Turn

# What damaged data raises. Everything else (a server that is down, a full disk) is not the record's fault and stops the reader.
DATA_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
COCO_NAME = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})")
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
        dead: the official locations are known to be gone; only mirrors (or what the notes say) are left.
        citation: paper, short.
        normalized_roles: turns that the original passes through its text normalisation (`mgpt.data.text.normalise_sample`).
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
    dead: bool = False
    citation: str = ""
    normalized_roles: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True)
class Part:
    """What one worker reads: `path` below `root` (a folder or s3:// prefix), images below `images`.

    `first` and `count` cut out some of the file's records, in file order (count None: to the end).
    """

    root: str
    path: str
    split: str
    images: str
    first: int = 0
    count: int | None = None

    @property
    def folder(self) -> Folder:
        """The dataset's folder."""
        return Folder(self.root)


@dataclass(frozen=True)
class RejectedRecord:
    """A record (or the rest of a file) that gave no sample. `source` is `path#key`, as in a sample."""

    dataset: str
    split: str
    source: str
    reason: Reason
    detail: str


class Reader(ABC):
    """Reads one dataset in its published format. Subclasses cut a file into rows and turn a row into samples."""

    collection: Literal["", "coco", "vg"] = ""  # whose numbers name the images
    patterns: tuple[str, ...] = ()  # names of annotation files, as `fnmatch` patterns; the first that matches any wins

    def __init__(self, card: Card, patterns: tuple[str, ...] = ()) -> None:
        self.card = card
        self.patterns = patterns or self.patterns

    def with_name(self, dataset: str) -> Self:
        """The same reader under another dataset's name."""
        other = copy.copy(self)
        other.card = replace(self.card, name=dataset)
        return other

    def files(self, root: str, images: str | None = None) -> list[Part]:
        """The files of the dataset below `root`, sorted; images are looked for below `images`, by default `root`.

        Raises:
            ValueError: there is none; the message says what was expected.
        """
        names = Folder(root).names()
        for pattern in self.patterns:
            found = [name for name in names if fnmatch(PurePosixPath(name).name, pattern)]
            if found:
                return [Part(root, name, split_name(name), images or root) for name in sorted(found)]
        raise ValueError(
            f"{self.card.name}: no {' or '.join(self.patterns)} below {root}; expected: {self.card.formats}"
        )

    def records(self, parts: Iterable[Part]) -> Iterator[Sample | RejectedRecord]:
        """Samples of the parts in file order, and a problem for each record that gives none.

        Streams, and never raises for what is in the files: one that breaks off gives what came before, then an "unreadable file" problem.
        """
        for part in parts:
            yield from self._part_records(part)

    def divide(self, part: Part, count: int) -> list[Part]:
        """The part cut into pieces of at most `count` rows, which together give the same records. Reads the file once."""
        rows = 0
        try:
            for _ in self._rows(part):
                rows += 1
        except DATA_ERRORS:  # the broken rest is one more row: the last piece meets it and names it
            rows += 1
        return [replace(part, first=first, count=count) for first in range(0, max(rows, 1), count)]

    @abstractmethod
    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        """Key and content of every row of a file."""

    @abstractmethod
    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        """The samples of one row. What it raises becomes the row's problem."""

    def _part_records(self, part: Part) -> Iterator[Sample | RejectedRecord]:
        images = ImageFolder(part.images)
        rows = self._rows(part)
        last = None if part.count is None else part.first + part.count
        for number in itertools.count():
            if last is not None and number >= last:
                return
            try:
                key, row = next(rows)
            except StopIteration:
                return
            except DATA_ERRORS as error:  # a damaged file must not end a run over thousands of files
                detail = f"after {number} rows: {type(error).__name__}: {error}"[:300]
                yield RejectedRecord(self.card.name, part.split, part.path, "unreadable file", detail)
                return
            if number >= part.first:
                yield from self._row_records(part, key, row, images)

    def _row_records(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        try:
            if isinstance(row, Exception):
                raise row
            yield from self._convert(part, key, row, images)
        except DATA_ERRORS as error:  # whatever is wrong with one record is that record's problem
            yield self._rejection(part.split, f"{part.path}#{key}", error)

    def _sample(
        self,
        part: Part,
        key: str,
        task: str,
        turns: tuple[Turn, ...],
        image: SourceImage | None = None,
        *,
        split: str | None = None,
        boxes: Sequence[Box] = (),
        licence: str | None = None,
        extra: Mapping[str, Any] | None = None,
        names: tuple[str, ...] = (),
    ) -> Sample:
        shown = image or SourceImage(None, 0, 0)
        return Sample.create(
            dataset=self.card.name,
            split=split or part.split,
            task=task,
            image=shown.data,
            width=shown.width,
            height=shown.height,
            turns=turns,
            boxes=tuple(boxes),
            licence=licence or self.card.licence,
            source=f"{part.path}#{key}",
            extra=extra or {},
            names=tuple(dict.fromkeys((*image_names(shown.path, self.collection), *names))),
        )

    def _rejection(self, split: str, source: str, error: Exception) -> RejectedRecord:
        if isinstance(error, RecordError):
            return RejectedRecord(self.card.name, split, source, error.reason, str(error))
        if isinstance(error, KeyError):
            return RejectedRecord(self.card.name, split, source, "missing field", f"the record has no {error}")
        return RejectedRecord(
            self.card.name, split, source, "unreadable record", f"{type(error).__name__}: {error}"[:300]
        )


def image_names(path: str, collection: str) -> tuple[str, ...]:
    """What an image file is called across datasets: `coco:139` for COCO's name of 2014 anywhere, and for a bare number in a dataset on
    images of COCO; `vg:2315405` for a bare number in one on images of Visual Genome."""
    name = PurePosixPath(path).stem
    if match := COCO_NAME.fullmatch(name):
        return (f"coco:{int(match.group(1))}",)
    return (f"{collection}:{int(name)}",) if collection and name.isascii() and name.isdigit() else ()


def split_name(text: str, default: str = "train") -> str:
    """The split that a file's name states (`vqa_val.json`, `instances_val2014.json`); `default` where it states none."""
    words = [word for part in PurePosixPath(text).parts for word in part.replace(".", "_").replace("-", "_").split("_")]
    for word in (word.rstrip("0123456789") for word in reversed(words)):
        if word in ("train", "validation", "test", "testA", "testB", "testdev", *SPLIT_NAMES):
            return SPLIT_NAMES.get(word, word)
    return default
