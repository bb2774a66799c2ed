"""Readers of visual question answering data for training: VQAv2, OK-VQA, A-OKVQA, GQA, OCR-VQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mgpt.data.datasets.base import Part, Reader, RejectedRecord
from mgpt.data.datasets.files import ImageFolder, RecordError, candidate_paths, text_field, text_list_field
from mgpt.data.datasets.streams import json_rows
from mgpt.data.types import Sample, Turn

COCO_RELEASES = ("train2014", "val2014", "train2017", "val2017")
COCO_FOLDERS = ("images", *COCO_RELEASES, *(f"images/{release}" for release in COCO_RELEASES))
OCRVQA_SPLITS = {1: "train", 2: "validation", 3: "test"}


def coco_names(number: int | str) -> tuple[str, ...]:
    """Returns the file names that a COCO image may have, given its id: that of 2017, then those of 2014.

    Raises:
        ValueError: the id is not a number.
    """
    digits = f"{int(number):0>12}"
    return f"{digits}.jpg", f"COCO_train2014_{digits}.jpg", f"COCO_val2014_{digits}.jpg"


def question_turns(question: str, answers: Sequence[str]) -> tuple[Turn, Turn]:
    """Returns a question and its answer, with the most frequent answer as text and all answers as alternatives.

    Repeats are kept, so that training draws answers by frequency, as in the original.

    Raises:
        RecordError: there is no answer.
    """
    texts = tuple(answer for answer in answers if answer.strip())
    if not texts:
        raise RecordError("missing answer", f"{question[:60]!r} has no answer")
    common = Counter(texts).most_common(1)[0][0]
    return Turn("user", question), Turn("assistant", common, texts if len(texts) > 1 else ())


def question_extra(part: Part, row: Mapping[str, Any], key: str, **more: Any) -> dict[str, Any] | None:
    """Returns the `extra` of a question: its key and further values for evaluation; None in training."""
    if part.split == "train":
        return None
    return {"key": str(row.get("question_id", key))} | {name: value for name, value in more.items() if value}


class _Questions(Reader):
    """A reader of a JSON list of questions, or of a JSON object keyed by question id."""

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            for key, row in json_rows(file):
                yield str(row.get("question_id", key)) if isinstance(row, dict) else key, row


class Vqa(_Questions):
    """VQAv2 and OK-VQA as published by LAVIS, `{"image", "question", "question_id", "answer": [10]}`.

    The original drops records without an image silently; here they are rejected with a reason.
    Source: original code, coco_vqa_datasets.py:43-91.
    """

    collection = "coco"
    patterns = ("*vqa_*.json",)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        answers = text_list_field(row, "answer") if "answer" in row else ()
        turns = question_turns(text_field(row, "question"), answers)
        image = images.get(*candidate_paths(text_field(row, "image"), *COCO_FOLDERS))
        yield self._sample(
            part, key, "vqa", turns, image, extra=question_extra(part, row, key, kind=row.get("question_type"))
        )


class AOkVqa(_Questions):
    """A-OKVQA in both published layouts: that of LAVIS with `image`, and the official one with `image_id` (COCO
    2017).
    """

    collection = "coco"
    patterns = ("aokvqa_*.json",)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        turns = question_turns(
            text_field(row, "question"), text_list_field(row, "direct_answers") if "direct_answers" in row else ()
        )
        image = images.get(*(path for name in self._names(row) for path in candidate_paths(name, *COCO_FOLDERS)))
        yield self._sample(
            part, key, "vqa", turns, image, extra=question_extra(part, row, key, choices=row.get("choices"))
        )

    def _names(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if row.get("image") is not None:
            return (text_field(row, "image"),)
        if row.get("image_id") is None:
            raise RecordError("missing field", "the record has neither 'image' nor 'image_id'")
        return coco_names(row["image_id"])


class Gqa(_Questions):
    """GQA in the layout of LAVIS (a list with `image`) or the official one (an object by question id with `imageId`).

    Source: original code, gqa_datasets.py:41-59.
    """

    collection = "vg"
    patterns = ("*balanced_questions.json", "*questions.json")

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        answers = (row["answer"],) if isinstance(row.get("answer"), str) else ()
        turns = question_turns(text_field(row, "question"), answers)
        name = text_field(row, "image") if "image" in row else text_field(row, "imageId") + ".jpg"
        image = images.get(*candidate_paths(name, "images"))
        yield self._sample(part, key, "vqa", turns, image, extra=question_extra(part, row, key))


class OcrVqa(Reader):
    """OCR-VQA's `dataset.json`, books by id with parallel lists of questions and answers; gives one sample per
    question.

    Source: original code, ocrvqa_dataset.py:38-76.
    """

    patterns = ("dataset.json",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            for book, row in json_rows(file):
                questions = row.get("questions") if isinstance(row, dict) else None
                for number in range(len(questions)) if isinstance(questions, list) else (0,):
                    yield f"{book}/{number}", (book, number, row)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        book, number, record = row
        answers = text_list_field(record, "answers")
        if number >= len(answers):
            raise RecordError(
                "missing answer", f"the book has {len(answers)} answers for {len(record['questions'])} questions"
            )
        turns = question_turns(text_list_field(record, "questions")[number], answers[number : number + 1])
        if record["split"] not in OCRVQA_SPLITS:
            raise RecordError("missing field", f"split is {record['split']!r}; 1, 2 or 3 was expected")
        split = OCRVQA_SPLITS[record["split"]]
        image = images.get(*candidate_paths(book + PurePosixPath(text_field(record, "imageURL")).suffix, "images"))
        yield self._sample(
            part, key, "vqa", turns, image, split=split, extra={"key": key} if split != "train" else None
        )
