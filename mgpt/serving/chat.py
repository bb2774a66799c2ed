"""`mgpt chat` and `mgpt predict`: one question about one image, or a file of questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mgpt.serving.images import draw_boxes, read_image
from mgpt.serving.loading import load
from mgpt.serving.predictor import BATCH_SIZE, MAX_NEW_TOKENS
from mgpt.serving.types import Reply
from mgpt.storage import Store, write_atomic
from mgpt.storage.types import WeightsReference


def chat(
    image: Path, prompt: str, model: WeightsReference | Path, store: Store | None = None, output: Path | None = None
) -> tuple[Reply, Path | None]:
    """Answers a prompt about an image, and writes the image with the boxes of the answer.

    Args:
        model: weights of a registered model, or a folder of trained weights.
        store: holds registered weights; default: the store they were registered in.
        output: the file to write; default: `<image>-answer.png` next to the image, and only if the answer has boxes.

    Returns:
        The reply, and the written file (None if the answer has no box and no output was given).

    Raises:
        ValueError: the image or the model cannot be used, or the output cannot be written as an image.
    """
    decoded = read_image(image)
    reply = load(model, store).answer(decoded, prompt)
    if output is None and not reply.boxes:
        return reply, None
    target = output or image.with_name(f"{image.stem}-answer.png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_boxes(decoded, reply.boxes).save(target)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{target}: the image cannot be written ({error}); name a .png or .jpg file in a writable folder"
        ) from error
    return reply, target


def predict(
    questions: Path,
    answers: Path,
    model: WeightsReference | Path,
    store: Store | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Answers every line of a JSONL file, `{"image": PATH, "prompt": TEXT}`, into a JSONL file; returns the number of
    answers.

    A line's fields are kept; `text`, `plain`, `boxes` and `finished` are added. A relative image path is relative to
    the questions' folder. The file of answers is written whole or not at all. `model` and `store` are as in `chat`;
    `report(done, all)` is called after
    each batch.

    Raises:
        ValueError: a line has another form, or an image or the model cannot be used; the message gives the line's
            number.
    """
    rows = _read_questions(questions)
    pairs = [(questions.parent / row["image"], row["prompt"]) for row in rows]
    predictor, replies = load(model, store), []
    for first in range(0, len(pairs), BATCH_SIZE):
        replies += predictor.answer_all(pairs[first : first + BATCH_SIZE], max_new_tokens, first=first)
        report(len(replies), len(pairs))
    lines = [
        json.dumps({**row, **reply.as_dict()}, ensure_ascii=False) for row, reply in zip(rows, replies, strict=True)
    ]
    write_atomic(answers, ("\n".join(lines) + "\n").encode())
    return len(lines)


def _read_questions(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a JSONL file with an image and a prompt in each line")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not (isinstance(row["image"], str) and isinstance(row["prompt"], str)):
                raise TypeError("image and prompt must be strings")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}:{number}: not a question ({error!r}); write {{"image": "PATH", "prompt": "TEXT"}}'
            ) from error
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file has no questions")
    return rows
