"""Readers of evaluation sets in their published files: OK-VQA, VSR, IconVQA, VizWiz, Hateful Memes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from mgpt.data.datasets.base import Part, Reader, RejectedRecord
from mgpt.data.datasets.files import ImageFolder, RecordError, candidate_paths, text_field
from mgpt.data.datasets.streams import json_or_lines, json_rows, jsonl_rows
from mgpt.data.datasets.vqa import COCO_FOLDERS, coco_names, question_turns
from mgpt.data.types import Sample, Turn


class _Benchmark(Reader):
    """A reader of a JSON list or of JSON Lines."""

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from json_or_lines(file, part.path)


class OkVqaEvaluation(Reader):
    """`okvqa_test_split.json` (`image_id`, `question`, `question_id`), with answers in the official
    `*annotations*.json`.
    """

    collection = "coco"
    patterns = ("okvqa_*_split.json",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        answers = self._answers(part)
        with part.folder.open(part.path) as file:
            for key, row in json_rows(file):
                yield str(row.get("question_id", key)) if isinstance(row, dict) else key, (row, answers)

    def _answers(self, part: Part) -> dict[str, list[str]]:
        found = [
            name for name in part.folder.names() if "annotations" in PurePosixPath(name).name and name.endswith(".json")
        ]
        if not found:
            raise ValueError(f"no *annotations*.json next to {part.path}, which holds questions only; add the file")
        with part.folder.open(sorted(found, key=lambda name: ("clean" not in name, name))[0]) as file:
            return {
                str(row["question_id"]): [answer["answer"] for answer in row["answers"]]
                for _, row in json_rows(file, "annotations")
            }

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        record, answers = row
        turns = question_turns(text_field(record, "question"), answers.get(key, ()))
        image = images.get(
            *(path for name in coco_names(record["image_id"]) for path in candidate_paths(name, *COCO_FOLDERS))
        )
        yield self._sample(part, key, "vqa", turns, image, extra={"key": key})


class Vsr(_Benchmark):
    """Visual Spatial Reasoning, JSON Lines of `image`, `caption`, `label`, `relation`: true or false statements."""

    collection = "coco"
    patterns = ("*.jsonl",)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        if row.get("label") not in (0, 1):
            raise RecordError("missing answer", f"label is {row.get('label')!r}; 0 or 1 was expected")
        turns = (Turn("user", text_field(row, "caption")), Turn("assistant", "true" if row["label"] else "false"))
        image = images.get(*candidate_paths(text_field(row, "image"), *COCO_FOLDERS))
        extra = {"key": key, "choices": ["true", "false"]} | (
            {"kind": row["relation"]} if isinstance(row.get("relation"), str) else {}
        )
        yield self._sample(part, key, "statement", turns, image, extra=extra)


class IconVqa(_Benchmark):
    """IconQA's multiple choice questions, `{image_id, question, choices, answer}`; `answer` is an index of `choices`.

    Images are `<image_id>/image.png`.
    """

    patterns = ("choose_t*xt_*.json",)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        choices, number = list(map(str, row["choices"])), row["answer"]
        if not isinstance(number, int) or not 0 <= number < len(choices):
            raise RecordError(
                "missing answer", f"answer is {number!r}; an index into {len(choices)} choices was expected"
            )
        turns = question_turns(text_field(row, "question"), (choices[number],))
        image = images.get(*candidate_paths(f"{row['image_id']}/image.png", "images"))
        yield self._sample(
            part, key, "vqa", turns, image, extra={"key": str(row.get("question_id", key)), "choices": choices}
        )


class VizWiz(_Benchmark):
    """VizWiz, `{image, question, answers: [{answer, answer_confidence}]}`; questions may have the answer
    'unanswerable'.
    """

    patterns = ("val.json", "train.json", "test.json")

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        name = text_field(row, "image")
        turns = question_turns(
            text_field(row, "question"), [text_field(answer, "answer") for answer in row.get("answers") or ()]
        )
        image = images.get(*candidate_paths(name, "images", "val"))
        yield self._sample(part, key, "vqa-unanswerable", turns, image, extra={"key": name})


class HatefulMemes(Reader):
    """Hateful Memes, JSON Lines of `id`, `img`, `label`, `text`."""

    patterns = ("dev*.jsonl", "test*.jsonl", "train*.jsonl")

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from jsonl_rows(file)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        if row.get("label") not in (0, 1):
            raise RecordError("missing answer", f"label is {row.get('label')!r}; 0 or 1 was expected")
        turns = (Turn("user", text_field(row, "text")), Turn("assistant", "yes" if row["label"] else "no"))
        extra = {"key": str(row["id"]), "choices": ["yes", "no"]}
        yield self._sample(
            part,
            key,
            "hateful-meme",
            turns,
            images.get(*candidate_paths(text_field(row, "img"), "images")),
            extra=extra,
        )
