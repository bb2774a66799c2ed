"""The base class of dataset readers, their cards, and the records that they reject.

A new format takes four pieces. `tests/unit/data/datasets/test_template.py` runs this example and is the pattern for its
test.

1. A class that splits a file into rows and converts each row into samples, in a module of this package:

    from collections.abc import Iterator
    from typing import Any

    from mgpt.data.datasets.base import Part, Reader, RejectedRecord
    from mgpt.data.datasets.files import ImageFolder, candidate_paths, text_field
    from mgpt.data.datasets.streams import json_rows
    from mgpt.data.types import Sample, Turn

    class Titles(Reader):
        '''A JSON list of `{"file": ..., "title": ...}`, images below `images/`.'''

        patterns = ("titles_*.json",)  # `titles_val.json` is the split validation

        def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
            with part.folder.open(part.path) as file:
                yield from json_rows(file)

        def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
            image = images.get(*candidate_paths(text_field(row, "file"), "images"))
            turns = (Turn("user", ""), Turn("assistant", text_field(row, "title")))
            yield self._sample(part, key, "caption", turns, image)

2. An entry `titles:` in `cards.yaml`, with at least title, kind, tasks, formats, size, licence and links (see `Card`).
3. A line `Titles(CARDS["titles"]),` in `READERS` (`__init__.py` of this package).
4. A test that writes a small file by hand and checks the samples and the reject reasons.

A row that cannot become a sample raises: `RecordError` with a reason, or any exception of `DATA_ERRORS` that
parsing a damaged row raises.
"""

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
from mgpt.data.types import Sample, SampleImage, Turn

# Exceptions that damaged data raises. Any other (an unreachable server, a full disk) is not the record's fault and ends
# the reader.
DATA_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
COCO_NAME = re.compile(r"COCO_(?:train|val|test)20\d\d_(\d{12})")
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Card:
    """The description of a dataset, for `mgpt data datasets` and the data card.

    Attributes:
        name: key in `READERS`; the `dataset` of its samples.
        title: full name.
        kind: row of the stage table (weakly labelled caption, REC, VQA, ...) or "evaluation".
        tasks: tasks of its samples.
        formats: files and layout below the root.
        size: records as published.
        licence: as the source states it, or "not stated".
        links, mirrors: official locations first, then copies.
        dead: the official locations no longer exist; only mirrors (or what the notes say) are left.
        citation: paper, short.
        normalized_roles: turns that the original normalizes (`mgpt.data.text_normalization.normalize_sample`).
        notes: known problems, such as dead links.
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
    """One file of a dataset, or a range of its rows: the unit of work of one worker.

    Attributes:
        root: folder or s3:// prefix of the dataset.
        path: the file, relative to `root`.
        split: split of its records, unless the records state their own.
        images: folder or s3:// prefix of the images.
        first: number of the first row.
        count: number of rows; None for all that follow.
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
    """A reader of one published format. Subclasses split a file into rows and convert a row into samples."""

    collection: Literal["", "coco", "vg"] = ""  # the collection whose numbers name the images
    patterns: tuple[str, ...] = ()  # `fnmatch` patterns of annotation files; the first one with matches applies

    def __init__(self, card: Card, patterns: tuple[str, ...] = ()) -> None:
        self.card = card
        self.patterns = patterns or self.patterns

    def with_name(self, dataset: str) -> Self:
        """Returns a copy of the reader for a dataset of another name."""
        other = copy.copy(self)
        other.card = replace(self.card, name=dataset)
        return other

    def files(self, root: str, images: str | None = None) -> list[Part]:
        """Returns the dataset's files below `root`, sorted; images are read from `images`, by default `root`.

        Raises:
            ValueError: no file matches the reader's patterns.
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
        """Yields the samples of the parts in file order, and a rejected record for each row that gives none.

        Streams, and never raises for the content of a file: a damaged file gives the rows before the damage, then one
        rejected record "unreadable file".
        """
        for part in parts:
            yield from self._part_records(part)

    def divide(self, part: Part, count: int) -> list[Part]:
        """Splits a part into parts of at most `count` rows with the same records in total. Reads the file once."""
        rows = 0
        try:
            for _ in self._rows(part):
                rows += 1
        except DATA_ERRORS:  # the damage counts as one more row, which the last part reports
            rows += 1
        return [replace(part, first=first, count=count) for first in range(0, max(rows, 1), count)]

    @abstractmethod
    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        """Yields key and content of every row of a file. An exception as content rejects the row."""

    @abstractmethod
    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        """Yields the samples of one row. One of `DATA_ERRORS` raised here rejects the row."""

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
            if number < part.first:
                continue
            try:
                if isinstance(row, Exception):
                    raise row
                yield from self._convert(part, key, row, images)
            except DATA_ERRORS as error:
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
        image = image or SourceImage(None, 0, 0)
        return Sample.create(
            dataset=self.card.name,
            split=split or part.split,
            task=task,
            images=() if image.data is None else (SampleImage(image.data, image.width, image.height),),
            turns=turns,
            boxes=tuple(boxes),
            licence=licence or self.card.licence,
            source=f"{part.path}#{key}",
            extra=extra or {},
            names=tuple(dict.fromkeys((*image_names(image.path, self.collection), *names))),
        )

    def _rejection(self, split: str, source: str, error: Exception) -> RejectedRecord:
        if isinstance(error, RecordError):
            return RejectedRecord(self.card.name, split, source, error.reason, str(error))
        if isinstance(error, KeyError):
            return RejectedRecord(self.card.name, split, source, "missing field", f"the record has no {error}")
        detail = f"{type(error).__name__}: {error}"[:300]
        return RejectedRecord(self.card.name, split, source, "unreadable record", detail)


def image_names(path: str, collection: str) -> tuple[str, ...]:
    """Returns the ids of an image across datasets, derived from its file name.

    A COCO-2014 name gives `coco:139` in any dataset; a bare number gives `coco:139` or `vg:139` in a dataset whose
    `collection` is COCO or Visual Genome.
    """
    name = PurePosixPath(path).stem
    if match := COCO_NAME.fullmatch(name):
        return (f"coco:{int(match.group(1))}",)
    return (f"{collection}:{int(name)}",) if collection and name.isascii() and name.isdigit() else ()


def split_name(text: str, default: str = "train") -> str:
    """Returns the split stated in a file's name (`vqa_val.json`, `instances_val2014.json`), else `default`."""
    words = [word for part in PurePosixPath(text).parts for word in part.replace(".", "_").replace("-", "_").split("_")]
    for word in (word.rstrip("0123456789") for word in reversed(words)):
        if word in ("train", "validation", "test", "testA", "testB", "testdev", *SPLIT_NAMES):
            return SPLIT_NAMES.get(word, word)
    return default
