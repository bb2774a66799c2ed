"""A gallery of predictions: images with true and predicted boxes, question, answer and reference, as one PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mgpt.data.boxes import Box, parse_boxes, strip_markup
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.evaluation.types import Evaluation, Example, Prediction
from mgpt.storage import write_atomic

GALLERY = "images.png"  # file name in the results of `evaluate`
SIDE = 320  # pixels, of an image in the gallery; small images are enlarged
MARGIN = 14  # pixels
TEXT_LINES = 10  # under an image
LINE_HEIGHT = 19  # pixels
LINE_CHARACTERS = 40
TRUE_COLOUR = (0, 190, 90)
PREDICTED_COLOUR = (230, 0, 160)
RIGHT_COLOUR = (0, 120, 60)
WRONG_COLOUR = (180, 30, 30)


def write_gallery(evaluation: Evaluation, count: int, path: Path) -> None:
    """Writes a PNG with `count` predictions of the last checkpoint, as many of each task as fit.

    Half of a task's predictions are wrong ones, where there are enough. True boxes are green, predicted ones magenta.

    Raises:
        ValueError: there are no predictions.
    """
    chosen = choose(evaluation, count)
    if not chosen:
        raise ValueError(
            f"evaluate: {evaluation.model_name} has no predictions to draw; evaluate at least one example, or set "
            f"evaluate.{evaluation.model_name}.images to 0"
        )
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    width, height = SIDE + MARGIN, SIDE + LINE_HEIGHT * TEXT_LINES + 2 * MARGIN
    page = Image.new("RGB", (columns * width + MARGIN, rows * height + 3 * MARGIN + LINE_HEIGHT), "white")
    legend = f"{evaluation.model_name}: true boxes green, predicted boxes magenta; Q question, A answer, T truth"
    ImageDraw.Draw(page).text((MARGIN, MARGIN), legend, fill="black", font=_font())
    for i, prediction in enumerate(chosen):
        left, top = MARGIN + i % columns * width, 2 * MARGIN + LINE_HEIGHT + i // columns * height
        page.paste(draw_panel(prediction), (left, top))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def choose(evaluation: Evaluation, count: int) -> list[Prediction]:
    """Chooses the predictions of the gallery, task by task, right and wrong ones alternating; deterministic."""
    last = list(evaluation.scores)[-1]
    by_task: dict[str, list[Prediction]] = {}
    for prediction in evaluation.predictions:
        if prediction.checkpoint == last:
            by_task.setdefault(prediction.example.task, []).append(prediction)
    share = max(1, count // max(1, len(by_task)))
    chosen: list[Prediction] = []
    for members in by_task.values():
        right = [prediction for prediction in members if _is_right(prediction)]
        wrong = [prediction for prediction in members if not _is_right(prediction)]
        mixed = [prediction for pair in zip(right, wrong, strict=False) for prediction in pair]
        if len(mixed) < share:
            mixed += [prediction for prediction in members if prediction not in mixed]
        chosen += mixed[:share]
    return chosen[:count]


def _is_right(prediction: Prediction) -> bool:
    """Returns True where the first metric of the task is above 0.5."""
    first = next(iter(prediction.score.contributions.values()))
    return first.denominator > 0 and first.numerator / first.denominator > 0.5


def draw_panel(prediction: Prediction) -> Image.Image:
    """Draws one image with its boxes, and question, answer and reference under it."""
    example = prediction.example
    answer = prediction.answer.text if prediction.answer else "(no answer)"
    panel = Image.new("RGB", (SIDE, SIDE + LINE_HEIGHT * TEXT_LINES + MARGIN), "white")
    resampling = Image.Resampling.NEAREST if example.width < SIDE else Image.Resampling.BICUBIC
    panel.paste(Image.open(io.BytesIO(example.image)).convert("RGB").resize((SIDE, SIDE), resampling))
    pen = ImageDraw.Draw(panel)
    truth = [box for phrase in example.phrases for box in phrase.boxes]
    if not truth and example.task == "reg":  # the region is in the question
        truth = parse_boxes(example.question, example.width, example.height)
    predicted = parse_boxes(answer, example.width, example.height)
    _draw_boxes(pen, truth, example.width, example.height, TRUE_COLOUR, 4)
    _draw_boxes(pen, predicted, example.width, example.height, PREDICTED_COLOUR, 2)
    colour = RIGHT_COLOUR if _is_right(prediction) else WRONG_COLOUR
    question = strip_markup(example.question.removeprefix(IMAGE_PREFIX)) or example.question
    lines = [(line, (0, 0, 0)) for line in _wrap("Q", question, 3)]
    lines += [(line, colour) for line in _wrap("A", strip_markup(answer) or answer, 4)]
    lines += [(line, (70, 70, 70)) for line in _wrap("T", _reference(example), 3)]
    for i, (line, fill) in enumerate(lines[:TEXT_LINES]):
        pen.text((0, SIDE + 6 + i * LINE_HEIGHT), line, fill=fill, font=_font())
    return panel


def _reference(example: Example) -> str:
    reference = example.references[0] if example.references else ""
    return strip_markup(reference) or reference


def _wrap(label: str, text: str, max_lines: int) -> list[str]:
    lines = textwrap.wrap(f"{label}: {text}", LINE_CHARACTERS) or [f"{label}:"]
    if len(lines) <= max_lines:
        return lines
    rest = " ".join(lines[max_lines - 1 :])
    return [*lines[: max_lines - 1], textwrap.shorten(rest, LINE_CHARACTERS, placeholder=" ...")]


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
