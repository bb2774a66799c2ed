"""Reader of GRIT: captions with boxes for their phrases, in Parquet files or img2dataset shards."""

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
    """One of the three tasks that MiniGPT-v2 derives from GRIT. Its procedure is not published; this one is our choice.

    `refer` and `identify` use the `ref_exps` (whole expressions) with exactly one box; `grounding` marks the outermost
    `noun_chunks` in the caption. Each element is `[start, end, x1, y1, x2, y2, confidence]`: a span of characters of
    the caption, and a box in shares of the image, 0 to 1. Images are in a column `image` or in the image folder as
    `<key>.jpg`; in a shard, `.json` holds the same fields.
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
            text, boxes = _mark_spans(caption, spans)
            yield self._sample(part, key, "grounding", (Turn("user", ""), Turn("assistant", text)), image, boxes=boxes)
            return
        single = {span: boxes for span, boxes in spans.items() if len(boxes) == 1}
        if not single:
            raise RecordError("missing box", "no expression has exactly one box")
        for (start, end), boxes in single.items():
            turns = reference_turns(self.kind, (caption[start:end],))
            yield self._sample(part, f"{key}/{start}-{end}", self.kind, turns, image, boxes=boxes)


def _image(record: Mapping[str, Any], images: ImageFolder) -> SourceImage:
    column = record.get("image")
    data = column.get("bytes") if isinstance(column, Mapping) else column
    if isinstance(data, bytes):
        return SourceImage.from_bytes(data)
    return images.get(*candidate_paths(f"{record['key']}.jpg", "images"))


def _spans(elements: Any, caption: str, image: SourceImage) -> dict[Span, list[Box]]:
    """Returns span of the caption -> boxes in pixels, in order of the text.

    Raises:
        RecordError: there is no element, or one is invalid.
    """
    rows = json.loads(elements) if isinstance(elements, str) else elements
    if not rows:
        raise RecordError("missing box", "no phrase of the caption has a box")
    spans: dict[Span, list[Box]] = {}
    for row in rows:
        if len(row) < 6 or not 0 <= int(row[0]) < int(row[1]) <= len(caption):
            raise RecordError("missing box", f"{list(row)} is not a span of the caption of {len(caption)} characters")
        x1, y1, x2, y2 = (float(value) for value in row[2:6])
        box = Box(x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)
        spans.setdefault((int(row[0]), int(row[1])), []).append(box)
    return dict(sorted(spans.items(), key=lambda item: (item[0][0], -item[0][1])))


def _mark_spans(caption: str, spans: Mapping[Span, Sequence[Box]]) -> tuple[str, list[Box]]:
    """Marks the phrases of a caption, `<p>words</p> <box:0>`; phrases inside another are skipped."""
    parts, boxes, position = [], list[Box](), 0
    for (start, end), found in spans.items():
        if start < position:
            continue
        tokens = "".join(f"<box:{len(boxes) + number}>" for number in range(len(found)))
        parts += [caption[position:start], f"<p>{caption[start:end]}</p> {tokens}"]
        boxes.extend(found)
        position = end
    return "".join([*parts, caption[position:]]), boxes
