"""Reader of users' own data: JSON Lines with images in the same folder (docs/own-data.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mgpt.data.boxes import Box
from mgpt.data.datasets.base import SPLIT_NAMES, Part, Reader, RejectedRecord
from mgpt.data.datasets.captions import caption_turns
from mgpt.data.datasets.conversations import ROLE_NAMES
from mgpt.data.datasets.files import ImageFolder, RecordError, candidate_paths, text_field, text_list_field
from mgpt.data.datasets.referring import BOX, reference_turns
from mgpt.data.datasets.streams import jsonl_rows
from mgpt.data.datasets.vqa import question_turns
from mgpt.data.types import Sample, Turn

FORMS = {"caption": "caption", "question": "vqa", "expression": "refer", "conversations": "instruction"}
KEYS = frozenset({"image", "answer", "box", "boxes", "task", "split", "licence", "key", "objects", "choices", *FORMS})
EXTRA = ("key", "objects", "choices")


class OwnData(Reader):
    """One JSON object per line, in one of four forms: `caption`, `question` + `answer`, `expression` + `box`,
    `conversations`.

    Records with unknown keys are rejected.
    """

    patterns = ("*.jsonl",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from jsonl_rows(file)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        form = _form(row)
        image = (
            images.get(*candidate_paths(text_field(row, "image"), "images")) if row.get("image") is not None else None
        )
        turns, boxes = _turns(row, form)
        task = text_field(row, "task") if "task" in row else FORMS[form] if image else "text"
        split = text_field(row, "split") if "split" in row else part.split
        extra = {name: row[name] for name in EXTRA if name in row}
        licence = text_field(row, "licence") if "licence" in row else None
        split = SPLIT_NAMES.get(split, split)
        yield self._sample(part, key, task, turns, image, split=split, boxes=boxes, licence=licence, extra=extra)


def _form(row: Any) -> str:
    """Returns the form of a record.

    Raises:
        RecordError: the record is not an object, has an unknown key, or none or several of the forms.
    """
    if not isinstance(row, Mapping):
        raise RecordError("unreadable record", f"a line must be a JSON object, not {type(row).__name__}")
    unknown = sorted(set(row) - KEYS)
    if unknown:
        raise RecordError("unreadable record", f"unknown key {', '.join(unknown)}; use {', '.join(sorted(KEYS))}")
    forms = [name for name in FORMS if name in row]
    if len(forms) != 1:
        detail = f"a record must have exactly one of {', '.join(FORMS)}; this one has {', '.join(forms) or 'none'}"
        raise RecordError("missing field", detail)
    return forms[0]


def _turns(row: Mapping[str, Any], form: str) -> tuple[tuple[Turn, ...], list[Box]]:
    if form == "caption":
        return caption_turns(_texts(row, "caption")), _boxes(row)
    if form == "question":
        return question_turns(text_field(row, "question"), _texts(row, "answer")), _boxes(row)
    if form == "expression":
        boxes = [_box(row.get("box"))] if "box" in row else _boxes(row)
        turns = reference_turns("identify" if row.get("task") == "identify" else "refer", _texts(row, "expression"))
        tokens = "".join(f"<box:{number}>" for number in range(len(boxes)))
        if not boxes:
            raise RecordError("missing box", "an expression needs a box, [x1, y1, x2, y2] in pixels")
        return tuple(Turn("assistant", tokens) if turn == BOX else turn for turn in turns), boxes
    return _conversation(row), _boxes(row)


def _conversation(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Returns the turns of `role` and `content`, or of LLaVA's `from` and `value`.

    A content that is a list of objects becomes JSON text, for tasks with items.

    Raises:
        RecordError: there are no turns, they do not alternate, or the last one is the user's.
    """
    messages = row["conversations"]
    if not isinstance(messages, list) or not messages:
        raise RecordError("missing field", "'conversations' must be a list of at least a question and an answer")
    turns = []
    for number, turn in enumerate(messages):
        role = ROLE_NAMES.get(text_field(turn, "role" if "role" in turn else "from"), "")
        content = turn.get("content", turn.get("value"))
        if role != ("user", "assistant")[number % 2]:
            rule = "user and assistant must alternate, the user first"
            raise RecordError("missing answer", f"the role of turn {number + 1} is {role or 'unknown'}; {rule}")
        if isinstance(content, list):
            content = json.dumps(content, ensure_ascii=False)
        if not isinstance(content, str):
            raise RecordError("missing field", f"turn {number + 1} has no content")
        turns.append(Turn("user" if number % 2 == 0 else "assistant", content.replace("<image>", "").strip()))
    if len(turns) % 2:
        raise RecordError("missing answer", "the last turn is the user's; add an answer")
    return tuple(turns)


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return text_list_field(row, key) if isinstance(row.get(key), list) else (text_field(row, key),)


def _boxes(row: Mapping[str, Any]) -> list[Box]:
    return [_box(values) for values in row.get("boxes", ())]


def _box(values: Any) -> Box:
    if not isinstance(values, list) or len(values) != 4 or not all(isinstance(value, (int, float)) for value in values):
        raise RecordError("missing box", f"{values!r:.80} is not a box [x1, y1, x2, y2] in pixels")
    return Box(*map(float, values))
