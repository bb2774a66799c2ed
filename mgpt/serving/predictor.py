"""A loaded model: images and prompts in, text and boxes in pixels out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mgpt.data.boxes import BOX_RUN, parse_boxes, parse_grid, parse_grounded, strip_markup, to_pixels
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.inference.types import GenerationRequest
from mgpt.serving.images import read_image
from mgpt.serving.types import LabelledBox, Reply

if TYPE_CHECKING:
    from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor

TASK_IDENTIFIER = re.compile(r"^\s*\[(\w+)\]\s*")
MAX_NEW_TOKENS, BATCH_SIZE = 300, 8


@dataclass(frozen=True)
class Predictor:
    """A loaded model with its processor. Decoding is greedy, so a question has the same answer alone and in a batch."""

    model: MiniGPTForConditionalGeneration
    processor: MiniGPTProcessor
    format: str

    def answer(self, image: Any, prompt: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Reply:
        """Answers one question, see `answer_all`."""
        return self.answer_all([(image, prompt)], max_new_tokens)[0]

    def answer_all(
        self,
        questions: Sequence[tuple[Any, str]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = BATCH_SIZE,
        first: int = 0,
    ) -> list[Reply]:
        """Answers questions, in their order.

        Args:
            questions: pairs of an image (anything `read_image` takes) and a prompt, with or without a task identifier
                such as `[refer]`.
            first: the number of the first question, for messages.

        Raises:
            ValueError: an image cannot be read or a prompt is empty; the message gives the question's number.
        """
        from mgpt.inference.generation import generate

        images, requests = [], []
        for number, (image, prompt) in enumerate(questions, first):
            if not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(f"question {number}: the prompt is empty; write one, e.g. '[refer] the red circle'")
            try:
                images.append(read_image(image))
            except ValueError as error:
                raise ValueError(f"question {number}: {error}") from error
            requests.append(
                GenerationRequest((images[-1],), ({"role": "user", "content": IMAGE_PREFIX + prompt.strip()},))
            )
        answers = generate(self.model, self.processor, requests, self.format, max_new_tokens, batch_size)
        return [
            Reply(output.text, strip_markup(output.text), find_boxes(output.text, prompt, *image.size), output.finished)
            for output, image, (_, prompt) in zip(answers, images, questions, strict=True)
        ]


def find_boxes(text: str, prompt: str, width: int, height: int) -> tuple[LabelledBox, ...]:
    """Returns every box of an answer in pixels of a `width` x `height` image, labelled by the phrase before it, else by
    the prompt.

    Accepts any string. `[detection] a ; b` answers and grounded captions both write `<p>phrase</p> {<x1>...}`.
    """
    grounded = [(part.phrase, part.boxes) for part in parse_grounded(text) if part.boxes]
    if sum(len(boxes) for _, boxes in grounded) == len(parse_grid(text)):
        return tuple(LabelledBox(phrase, *to_pixels(box, width, height)) for phrase, boxes in grounded for box in boxes)
    label = strip_markup(BOX_RUN.sub(" ", TASK_IDENTIFIER.sub("", prompt)))
    return tuple(LabelledBox(label, *box) for box in parse_boxes(text, width, height))
