"""A page of images with what was asked, the true and the predicted boxes, and the answers, large enough to read."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mgpt.data.boxes import Box, parse_boxes, strip_markup
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.evaluation.evaluator import Evaluation, Prediction
from mgpt.evaluation.examples import Item
from mgpt.storage import write_atomic

SIDE = 320  # pixels of an image on the page; small ones are enlarged
MARGIN = 14
TEXT_LINES = 10
LINE = 19
LETTERS = 40  # of a line of text under an image
TRUE_COLOUR = (0, 190, 90)
PREDICTED_COLOUR = (230, 0, 160)
RIGHT_COLOUR = (0, 120, 60)
WRONG_COLOUR = (180, 30, 30)


def write_gallery(evaluation: Evaluation, count: int, path: Path) -> None:
    """A PNG with `count` images of the last checkpoint, as many of each task as fit; half of a task's images are ones that it got
    wrong, where there are such.

    True boxes are green, predicted ones magenta. Raises ValueError when there is nothing to show.
    """
    chosen = choose(evaluation, count)
    if not chosen:
        raise ValueError(f"evaluate: {evaluation.model_name} has no predictions to draw; ask at least one item")
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    width, height = SIDE + MARGIN, SIDE + LINE * TEXT_LINES + 2 * MARGIN
    page = Image.new("RGB", (columns * width + MARGIN, rows * height + 3 * MARGIN + LINE), "white")
    legend = f"{evaluation.model_name}: true boxes green, predicted boxes magenta; Q asked, A answered, T true"
    ImageDraw.Draw(page).text((MARGIN, MARGIN), legend, fill="black", font=_font())
    for i, prediction in enumerate(chosen):
        page.paste(panel(prediction), (MARGIN + i % columns * width, 2 * MARGIN + LINE + i // columns * height))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def choose(evaluation: Evaluation, count: int) -> list[Prediction]:
    """The images of the page, task by task, right and wrong ones in turn; deterministic."""
    last = list(evaluation.scores)[-1]
    by_task: dict[str, list[Prediction]] = {}
    for prediction in evaluation.predictions:
        if prediction.checkpoint == last:
            by_task.setdefault(prediction.item.task, []).append(prediction)
    share = max(1, count // max(1, len(by_task)))
    chosen: list[Prediction] = []
    for members in by_task.values():
        right = [prediction for prediction in members if _is_right(prediction)]
        wrong = [prediction for prediction in members if not _is_right(prediction)]
        mixed = [p for pair in zip(right, wrong, strict=False) for p in pair]
        mixed += [prediction for prediction in members if prediction not in mixed] if len(mixed) < share else []
        chosen += mixed[:share]
    return chosen[:count]


def _is_right(prediction: Prediction) -> bool:
    """By the first metric of the task."""
    part = next(iter(prediction.judgement.parts.values()))
    return part.denominator > 0 and part.numerator / part.denominator > 0.5


def panel(prediction: Prediction) -> Image.Image:
    """One image with its boxes, and the texts under it."""
    item = prediction.item
    answer = prediction.answer.text if prediction.answer else "(no answer)"
    tile = Image.new("RGB", (SIDE, SIDE + LINE * TEXT_LINES + MARGIN), "white")
    tile.paste(
        Image.open(io.BytesIO(item.image))
        .convert("RGB")
        .resize((SIDE, SIDE), Image.Resampling.NEAREST if item.width < SIDE else Image.Resampling.BICUBIC)
    )
    pen = ImageDraw.Draw(tile)
    truth = [box for phrase in item.phrases for box in phrase.boxes] or (
        parse_boxes(item.question, item.width, item.height) if item.task == "identify" else []
    )
    _draw_boxes(pen, truth, item.width, item.height, TRUE_COLOUR, 4)
    _draw_boxes(pen, parse_boxes(answer, item.width, item.height), item.width, item.height, PREDICTED_COLOUR, 2)
    colour = RIGHT_COLOUR if _is_right(prediction) else WRONG_COLOUR
    question = strip_markup(item.question.removeprefix(IMAGE_PREFIX)) or item.question
    lines = [(line, (0, 0, 0)) for line in _wrapped("Q", question, 3)]
    lines += [(line, colour) for line in _wrapped("A", strip_markup(answer) or answer, 4)]
    lines += [(line, (70, 70, 70)) for line in _wrapped("T", _truth(item), 3)]
    for i, (line, fill) in enumerate(lines[:TEXT_LINES]):
        pen.text((0, SIDE + 6 + i * LINE), line, fill=fill, font=_font())
    return tile


def _truth(item: Item) -> str:
    reference = item.references[0] if item.references else ""
    return strip_markup(reference) or reference


def _wrapped(mark: str, text: str, most: int) -> list[str]:
    lines = textwrap.wrap(f"{mark}: {text}", LETTERS) or [f"{mark}:"]
    return (
        lines
        if len(lines) <= most
        else [*lines[: most - 1], textwrap.shorten(" ".join(lines[most - 1 :]), LETTERS, placeholder=" ...")]
    )


def _draw_boxes(
    pen: ImageDraw.ImageDraw,
    boxes: Sequence[Box],
    width: int,
    height: int,
    colour: tuple[int, int, int],
    thickness: int,
) -> None:
    for box in boxes:
        corners = (box.x1 / width * SIDE, box.y1 / height * SIDE, box.x2 / width * SIDE, box.y2 / height * SIDE)
        pen.rectangle(corners, outline=colour, width=thickness)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=15)
