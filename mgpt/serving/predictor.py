"""A model that answers: images and prompts in, text and pixel boxes out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mgpt.data.boxes import BOX_RUN, parse_boxes, parse_grid, parse_grounded, strip_markup, to_pixels
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.serving.images import read_image

if TYPE_CHECKING:
    from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor

IDENTIFIER = re.compile(r"^\s*\[(\w+)\]\s*")
MOST_NEW_TOKENS, BATCH_SIZE = 300, 8


@dataclass(frozen=True)
class LabelledBox:
    """A box in pixels of the image as it was given (left, top, right, bottom), and the words it belongs to."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Reply:
    """`text` is the model's answer with its markup, `plain` without; `finished` is False where the token limit cut it off."""

    text: str
    plain: str
    boxes: tuple[LabelledBox, ...]
    finished: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "boxes": [asdict(box) for box in self.boxes]}


@dataclass(frozen=True)
class Predictor:
    """A loaded model with its processor; decoding is greedy, so the same question has the same answer, alone or in a batch."""

    model: MiniGPTForConditionalGeneration
    processor: MiniGPTProcessor
    format: str

    def answer(self, image: Any, prompt: str, max_new_tokens: int = MOST_NEW_TOKENS) -> Reply:
        """One answer. See `answer_all`."""
        return self.answer_all([(image, prompt)], max_new_tokens)[0]

    def answer_all(
        self,
        questions: Sequence[tuple[Any, str]],
        max_new_tokens: int = MOST_NEW_TOKENS,
        batch_size: int = BATCH_SIZE,
        first: int = 0,
    ) -> list[Reply]:
        """Answers in the order of the questions.

        Args:
            questions: pairs of an image (anything `read_image` takes) and a prompt, with or without a task identifier such as `[refer]`.

            first: the number of the first question, for messages.

        Raises:
            ValueError: an image cannot be read (the message names which), or a prompt is empty.
        """
        from mgpt.inference.generation import generate
        from mgpt.inference.types import GenerationRequest

        images, requests = [], []
        for number, (image, prompt) in enumerate(questions, first):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(
                    f"question {number}: the prompt is empty; ask something, e.g. '[refer] the red circle'"
                )
            try:
                images.append(read_image(image))
            except ValueError as error:
                raise ValueError(f"question {number}: {error}") from error
            requests.append(
                GenerationRequest((images[-1],), ({"role": "user", "content": IMAGE_PREFIX + prompt.strip()},))
            )
        answers = generate(self.model, self.processor, requests, self.format, max_new_tokens, batch_size)
        rows = zip(answers, images, questions, strict=True)
        return [_reply(found.text, found.finished, prompt, decoded.size) for found, decoded, (_, prompt) in rows]


def _reply(text: str, finished: bool, prompt: str, size: tuple[int, int]) -> Reply:
    return Reply(text, strip_markup(text), find_boxes(text, prompt, *size), finished)


def find_boxes(text: str, prompt: str, width: int, height: int) -> tuple[LabelledBox, ...]:
    """Every box of an answer in pixels of a width x height image, labelled by the phrase before it, else by what the prompt asked for.

    Answers on any string. `[detection] a ; b` answers and grounded captions both write `<p>phrase</p> {<x1>...}`.
    """
    grounded = [(part.phrase, part.boxes) for part in parse_grounded(text) if part.boxes]
    if sum(len(boxes) for _, boxes in grounded) == len(parse_grid(text)):
        return tuple(LabelledBox(phrase, *to_pixels(box, width, height)) for phrase, boxes in grounded for box in boxes)
    asked = strip_markup(BOX_RUN.sub(" ", IDENTIFIER.sub("", prompt)))
    return tuple(LabelledBox(asked, *box) for box in parse_boxes(text, width, height))
