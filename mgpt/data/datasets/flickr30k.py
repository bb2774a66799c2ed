"""Readers of the grounded sets on Flickr30k: MiniGPT-v2's three files, and their equivalents from Flickr30k
Entities.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree

from mgpt.data.boxes import Box, tokenize_boxes
from mgpt.data.datasets.base import Card, Part, Reader, RejectedRecord, split_name
from mgpt.data.datasets.files import Folder, ImageFolder, RecordError, candidate_paths, text_field
from mgpt.data.datasets.streams import json_rows
from mgpt.data.types import Sample, Turn

Kind = Literal["grounding", "caption", "phrase"]
FILES = {"grounding": "groundedcaption.json", "caption": "captiontobbox.json", "phrase": "phrasetobbox.json"}
ENTITY = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]*)?\s([^\]]*)\]")
MIN_PHRASES = 5  # the authors keep images with at least five grounded phrases


class FlickrGrounded(Reader):
    """MiniGPT-v2's own files, with boxes as text: grounded captions, caption to phrases, or phrase to boxes.

    Boxes are converted to pixels such that formatting them gives the same text. Source: original code,
    flickr.py:21-159.
    """

    def __init__(self, card: Card, kind: Kind) -> None:
        super().__init__(card)
        self.kind: Kind = kind
        self.patterns = (FILES[kind],)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from json_rows(file)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        image = images.get(*candidate_paths(f"{row['image_id']}.jpg", "images", "flickr30k-images"))
        question, answer = self._texts(row)
        tokens, boxes = tokenize_boxes(answer, image.width, image.height)
        if not boxes:
            raise RecordError("missing box", f"the answer has no box: {answer[:80]!r}")
        task = "grounding" if self.kind == "grounding" else "detection"
        yield self._sample(part, key, task, (Turn("user", question), Turn("assistant", tokens)), image, boxes=boxes)

    def _texts(self, row: Any) -> tuple[str, str]:
        if self.kind == "grounding":
            return "", text_field(row, "grounded_caption")
        if self.kind == "caption":
            return text_field(row, "caption"), text_field(row, "output")
        return text_field(row, "phrase"), f"<p>{text_field(row, 'phrase')}</p> {text_field(row, 'bbox')}"


class FlickrEntities(Reader):
    """Flickr30k Entities: `Sentences/N.txt` with `[/EN#chain/type words]`, `Annotations/N.xml` with pixel boxes by
    chain.

    Rebuilds MiniGPT-v2's three sets, whose files are no longer available: grounded captions and caption to phrases from
    captions of images with at least five grounded phrases, phrase to boxes from every phrase with boxes. Splits are
    read from `train.txt`, `val.txt` and `test.txt` next to the folders; without them all records are train.
    """

    def __init__(self, card: Card, kind: Kind) -> None:
        super().__init__(card)
        self.kind: Kind = kind

    def files(self, root: str, images: str | None = None) -> list[Part]:
        """Returns one part per split list, or one for the folder `Sentences`.

        Raises:
            ValueError: there is no folder `Sentences`.
        """
        names = Folder(root).names()
        if not any(PurePosixPath(name).parent.name == "Sentences" for name in names):
            raise ValueError(f"{self.card.name}: no Sentences/*.txt below {root}; expected: {self.card.formats}")
        lists = [name for name in names if PurePosixPath(name).name in ("train.txt", "val.txt", "test.txt")]
        if not lists:
            folder = next(
                str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).parent.name == "Sentences"
            )
            return [Part(root, folder, "train", images or root)]
        return [Part(root, name, split_name(name), images or root) for name in lists]

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        path = PurePosixPath(part.path)
        if path.suffix:
            numbers = part.folder.read(part.path).decode().split()
        else:
            files = map(PurePosixPath, part.folder.names())
            numbers = sorted(file.stem for file in files if file.parent == path)
        for number in numbers:
            yield number, path.parent

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        sentences = self._read(part, row / "Sentences" / f"{key}.txt").decode().splitlines()
        chains = _chain_boxes(self._read(part, row / "Annotations" / f"{key}.xml"))
        image = images.get(*candidate_paths(f"{key}.jpg", "images", "flickr30k-images"))
        grounded = sum(chain in chains for line in sentences for chain, _ in ENTITY.findall(line))
        for number, line in enumerate(sentences):
            if self.kind != "phrase" and grounded < MIN_PHRASES:
                detail = f"{grounded} grounded phrases, fewer than {MIN_PHRASES}"
                yield RejectedRecord(self.card.name, part.split, f"{part.path}#{key}/{number}", "not used", detail)
                continue
            for index, (task, turns, boxes) in enumerate(self._line_turns(line, chains)):
                name = f"{key}/{number}" if self.kind != "phrase" else f"{key}/{number}/{index}"
                yield self._sample(part, name, task, turns, image, boxes=boxes)

    def _read(self, part: Part, path: PurePosixPath) -> bytes:
        try:
            return part.folder.read(str(path))
        except FileNotFoundError as error:
            raise RecordError("missing box", f"{path} does not exist") from error

    def _line_turns(
        self, line: str, chains: dict[str, list[Box]]
    ) -> Iterator[tuple[str, tuple[Turn, Turn], list[Box]]]:
        plain = " ".join(ENTITY.sub(r"\2", line).split())
        marked, boxes = _mark_phrases(line, chains)
        if self.kind == "grounding":
            yield "grounding", (Turn("user", ""), Turn("assistant", marked)), boxes
        elif self.kind == "caption":
            found = re.findall(r"<p>.*?</p> (?:<box:\d+>)+", marked)
            yield "detection", (Turn("user", plain), Turn("assistant", " ".join(found))), boxes
        else:
            for chain, phrase in ENTITY.findall(line):
                if chain in chains:
                    own = chains[chain]
                    tokens = "".join(f"<box:{number}>" for number in range(len(own)))
                    yield "detection", (Turn("user", phrase), Turn("assistant", f"<p>{phrase}</p> {tokens}")), own


def _mark_phrases(line: str, chains: dict[str, list[Box]]) -> tuple[str, list[Box]]:
    """Marks the grounded phrases of a sentence, `<p>words</p> <box:0><box:1>`, and returns their boxes."""
    boxes: list[Box] = []

    def mark(match: re.Match[str]) -> str:
        chain, words = match.groups()
        if chain not in chains:
            return words
        first = len(boxes)
        boxes.extend(chains[chain])
        return f"<p>{words}</p> " + "".join(f"<box:{number}>" for number in range(first, len(boxes)))

    return " ".join(ENTITY.sub(mark, line).split()), boxes


def _chain_boxes(data: bytes) -> dict[str, list[Box]]:
    """Returns chain -> boxes in pixels of a VOC-style annotation.

    Raises:
        RecordError: the annotation is not XML, declares a document type, or a box lacks a coordinate.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        # Nested entities can expand without bound.
        raise RecordError("unreadable record", "the annotation declares a document type, which is not supported")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise RecordError("unreadable record", f"the annotation is not XML: {error}") from error
    chains: dict[str, list[Box]] = {}
    for item in root.iter("object"):
        corners = item.find("bndbox")
        if corners is None:
            continue
        values = [corners.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
        if None in values:
            raise RecordError("missing box", "a bndbox lacks a coordinate")
        box = Box(*(float(value) for value in values if value is not None))
        for name in item.findall("name"):
            chains.setdefault(str(name.text), []).append(box)
    return chains
