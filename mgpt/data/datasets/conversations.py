"""Readers of conversations: LLaVA-Instruct, the multi-task conversations of MiniGPT-v2, Unnatural Instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mgpt.data.boxes import Box, tokenize_boxes
from mgpt.data.datasets.base import Part, Reader, RejectedRecord
from mgpt.data.datasets.files import ImageFolder, RecordError, SourceImage, candidate_paths, text_field
from mgpt.data.datasets.streams import json_or_lines
from mgpt.data.datasets.vqa import COCO_FOLDERS, coco_names
from mgpt.data.types import Sample, Turn

ROLE_NAMES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def conversation_turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns role and text of every turn, without the `<image>` tag.

    Raises:
        RecordError: there are no turns, or they do not alternate between user and assistant.
    """
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RecordError("missing field", "'conversations' is absent or empty")
    texts = [(ROLE_NAMES.get(text_field(turn, "from"), ""), text_field(turn, "value")) for turn in turns]
    if [role for role, _ in texts] != ["user", "assistant"] * (len(texts) // 2):
        order = ", ".join(role or "unknown" for role, _ in texts)
        raise RecordError("missing answer", f"the roles are {order}; user and assistant must alternate")
    return [(role, text.replace("<image>", "").strip() if role == "user" else text) for role, text in texts]


def turns_with_boxes(texts: Sequence[tuple[str, str]], image: SourceImage) -> tuple[tuple[Turn, ...], list[Box]]:
    """Returns the turns with box tokens in place of written boxes, and the boxes in pixels.

    Raises:
        ValueError: a written box is invalid, see `tokenize_boxes`.
    """
    turns, boxes = [], list[Box]()
    for role, text in texts:
        tokens, boxes = tokenize_boxes(text, image.width, image.height, boxes)
        turns.append(Turn("user" if role == "user" else "assistant", tokens))
    return tuple(turns), boxes


class _CocoConversations(Reader):
    """Conversations about COCO images, given by id.

    The original assumes `COCO_train2014_{id}.jpg` (defect T34); the names of 2017 are tried too.
    """

    collection = "coco"

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            for key, row in json_or_lines(file, part.path):
                yield f"{row.get('id', '')}/{key}" if isinstance(row, dict) else key, row

    def _image(self, row: Mapping[str, Any], images: ImageFolder) -> SourceImage:
        given = [row["image"]] if isinstance(row.get("image"), str) else []
        names = [*given, *coco_names(str(row["id"]))]
        return images.get(*dict.fromkeys(path for name in names for path in candidate_paths(name, *COCO_FOLDERS)))


class LlavaFirstTurn(_CocoConversations):
    """`detail_23k.json` and `complex_reasoning_77k.json`: the first question, without line breaks, and its answer.

    Source: original code, llava_dataset.py:18-90.
    """

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        turns = row.get("conversations")
        (_, question), (_, answer) = conversation_turns(
            row | {"conversations": turns[:2] if isinstance(turns, list) else turns}
        )
        pair = (Turn("user", question.replace("\n", "")), Turn("assistant", answer))
        yield self._sample(part, key, "instruction", pair, self._image(row, images))


class LlavaConversation(_CocoConversations):
    """`conversation_58k.json`: all turns, unchanged. Source: original code, llava_dataset.py:95-149."""

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        turns = tuple(Turn("user" if role == "user" else "assistant", text) for role, text in conversation_turns(row))
        yield self._sample(part, key, "instruction", turns, self._image(row, images))


class MultitaskConversation(_CocoConversations):
    """Conversations that mix tasks, with task identifiers in the questions and boxes in the texts.

    The original's instructions and configuration name the file differently; both names are read.
    Source: original code, multitask_conversation.py:23-75.
    """

    patterns = ("multi*task_conversation*.json",)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        image = self._image(row, images)
        turns, boxes = turns_with_boxes(conversation_turns(row), image)
        yield self._sample(part, key, "instruction", turns, image, boxes=boxes)


class UnnaturalInstructions(Reader):
    """Unnatural Instructions, text only: instruction with constraints, and output, of each record's first instance.

    A JSON list, or JSON Lines as released. Source: original code, unnatural_instruction.py:21-46.
    """

    patterns = ("*unnatural*.json", "*unnatural*.jsonl", "core_data.jsonl", "full_data.jsonl")

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from json_or_lines(file, part.path)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        instances = row["instances"]
        if not instances:
            raise RecordError("missing field", "'instances' is empty")
        question, answer = text_field(instances[0], "instruction_with_input"), text_field(instances[0], "output")
        if not answer.strip():
            raise RecordError("missing answer", "the output is empty")
        if instances[0].get("constraints") is not None:
            question += f" {text_field(instances[0], 'constraints')}"
        yield self._sample(part, key, "text", (Turn("user", question), Turn("assistant", answer)))
