"""Reader of GRIT: captions whose parts are located, in Parquet or in the shards that img2dataset makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mgpt.data.boxes import Box
from mgpt.data.datasets.base import Card, Part, Reader, RejectedRecord
from mgpt.data.datasets.captions import image_member
from mgpt.data.datasets.files import ImageFolder, RecordError, SourceImage, candidate_paths, text_field
from mgpt.data.datasets.referring import reference_turns
from mgpt.data.datasets.streams import parquet_rows, tar_rows
from mgpt.data.types import Sample, Turn

Kind = Literal["refer", "identify", "grounding"]
Span = tuple[int, int]


class Grit(Reader):
    """One of the three tasks that MiniGPT-v2 makes of GRIT; how is not published, so this is our choice.

    `refer` and `identify` take `ref_exps` (whole expressions) with exactly one box; `grounding` marks every outermost of the
    `noun_chunks` in the caption. Each element is `[start, end, x1, y1, x2, y2, confidence]`: characters of the caption, and a box from 0
    to 1 of the image. Images lie in an `image` column, or below the image folder as `<key>.jpg`; a shard's `.json` holds the same
    fields beside its image.
    """

    patterns = ("*.parquet", "*.tar")

    def __init__(self, card: Card, kind: Kind) -> None:
        super().__init__(card)
        self.kind: Kind = kind

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from tar_rows(file) if part.path.endswith(".tar") else parquet_rows(file)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        record = json.loads(row["json"]) if part.path.endswith(".tar") else row
        image = image_member(row) if part.path.endswith(".tar") else _image(record, images)
        caption = text_field(record, "caption")
        spans = _spans(record["noun_chunks" if self.kind == "grounding" else "ref_exps"], caption, image)
        if self.kind == "grounding":
            text, boxes = _marked(caption, spans)
            yield self._sample(part, key, "grounding", (Turn("user", ""), Turn("assistant", text)), image, boxes=boxes)
            return
        single = {span: boxes for span, boxes in spans.items() if len(boxes) == 1}
        if not single:
            raise RecordError("missing box", "no expression has exactly one box")
        for (start, end), boxes in single.items():
            turns = reference_turns(self.kind, (caption[start:end],))
            yield self._sample(part, f"{key}/{start}-{end}", self.kind, turns, image, boxes=boxes)


def _image(record: Mapping[str, Any], images: ImageFolder) -> SourceImage:
    held = record.get("image")
    data = held.get("bytes") if isinstance(held, Mapping) else held
    if isinstance(data, bytes):
        return SourceImage.from_bytes(data)
    return images.get(*candidate_paths(f"{record['key']}.jpg", "images"))


def _spans(elements: Any, caption: str, image: SourceImage) -> dict[Span, list[Box]]:
    """Boxes in pixels by span of the caption, in order of the text.

    Raises:
        Refused: there is none, or an element is not as described.
    """
    rows = json.loads(elements) if isinstance(elements, str) else elements
    if not rows:
        raise RecordError("missing box", "nothing of the caption is located")
    spans: dict[Span, list[Box]] = {}
    for row in rows:
        span, box = _located(row, caption, image)
        spans.setdefault(span, []).append(box)
    return dict(sorted(spans.items(), key=lambda item: (item[0][0], -item[0][1])))


def _located(row: Sequence[float], caption: str, image: SourceImage) -> tuple[Span, Box]:
    if len(row) < 6 or not 0 <= int(row[0]) < int(row[1]) <= len(caption):
        raise RecordError("missing box", f"{list(row)} does not point into the caption of {len(caption)} characters")
    x1, y1, x2, y2 = (float(value) for value in row[2:6])
    return (int(row[0]), int(row[1])), Box(x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)


def _marked(caption: str, spans: Mapping[Span, Sequence[Box]]) -> tuple[str, list[Box]]:
    """The caption with its located phrases marked up; a phrase inside another is left out."""
    parts, boxes, place = [], list[Box](), 0
    for (start, end), found in spans.items():
        if start < place:
            continue
        tokens = "".join(f"<box:{len(boxes) + number}>" for number in range(len(found)))
        parts += [caption[place:start], f"<p>{caption[start:end]}</p> {tokens}"]
        boxes.extend(found)
        place = end
    return "".join([*parts, caption[place:]]), boxes
