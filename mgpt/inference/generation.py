"""Answers in batches: greedy, the same text whether asked alone or with others.

Requests are sorted by length so that a batch wastes little padding, padded on the left, and each row stops at its own end: a row that
ended is filled with padding until the batch is done, and never influences another row.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

from mgpt.inference.types import Answer, Request
from mgpt.models import PROMPT_FORMATS, MiniGPTForConditionalGeneration, MiniGPTProcessor

TAIL = 8  # the end symbol is looked for in this many last tokens; no tokenizer spreads one wider


class FeatureCache:
    """Features of images from the frozen tower (and Q-Former), which no training changes: valid for every checkpoint on the same "
    "backbones."""

    def __init__(self, model: MiniGPTForConditionalGeneration) -> None:
        self.model = model
        self.known: dict[bytes, torch.Tensor] = {}

    def __call__(self, images: Sequence[bytes | Image.Image], pixels: torch.Tensor) -> torch.Tensor:
        """`pixels` (images, 3, side, side) of these images -> (images, image tokens, projection inputs)."""
        keys = [hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest() for image in images]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            with torch.no_grad():
                encoded = self.model.encode_images(pixels[new])
            self.known.update({keys[i]: encoded[row] for row, i in enumerate(new)})
        return torch.stack([self.known[key] for key in keys])


def answer(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    requests: Sequence[Request],
    format: str,
    max_new_tokens: int,
    batch_size: int = 32,
    features: FeatureCache | None = None,
) -> list[Answer]:
    """Answer every request greedily; answers stand in the order of the requests. `features` keeps what the frozen tower made of each
    image, across calls.

    Raises ValueError for an unknown format, a request that does not end with a user message, or an image that cannot be read.
    """
    _check(requests, format, max_new_tokens, batch_size)
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].images), _length(requests[i])))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers.update(
            zip(
                chosen,
                _answer_batch(model, processor, [requests[i] for i in chosen], format, max_new_tokens, features),
                strict=True,
            )
        )
    return [answers[i] for i in range(len(requests))]


def _check(requests: Sequence[Request], format: str, max_new_tokens: int, batch_size: int) -> None:
    if format not in PROMPT_FORMATS:
        raise ValueError(f"format: '{format}' is not a prompt format; use one of {', '.join(PROMPT_FORMATS)}")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    for number, request in enumerate(requests):
        if not request.messages or request.messages[-1]["role"] != "user":
            raise ValueError(
                f"request {number}: the conversation must end with a user message, which is the one to answer"
            )


def _length(request: Request) -> int:
    return sum(len(message["content"]) for message in request.messages)


def _answer_batch(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    requests: Sequence[Request],
    format: str,
    max_new_tokens: int,
    features: FeatureCache | None,
) -> list[Answer]:
    inputs = encode(model, processor, requests, format, features)
    end = PROMPT_FORMATS[format].end
    tokenizer = processor.tokenizer
    stop = EndOfText(lambda rows: tokenizer.batch_decode(rows, skip_special_tokens=False), end, tokenizer.eos_token_id)
    with torch.no_grad():
        tokens = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, stopping_criteria=StoppingCriteriaList([stop])
        )
    counts = (
        (tokens != tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokens != tokenizer.eos_token_id)
        .sum(dim=1)
        .tolist()
    )
    return [
        Answer(text, finished, count)
        for (text, finished), count in zip(processor.answers(tokens, format), counts, strict=True)
    ]


def encode(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    requests: Sequence[Request],
    format: str,
    features: FeatureCache | None = None,
    answers: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Model inputs on the model's device: left-padded and open for generation, or, with an answer for each request, labelled with it."""
    images = [image for request in requests for image in request.images]
    conversations = [list(request.messages) for request in requests]
    for conversation, text in zip(conversations, answers, strict=False):
        conversation.append({"role": "assistant", "content": text})
    decoded = [decode_image(image) for image in images] or None
    batch = processor(
        images=decoded, conversations=conversations, format=format, labels=bool(answers), padding_side="left"
    )
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    if features is not None and "pixel_values" in inputs:
        inputs["image_features"] = features(images, inputs.pop("pixel_values"))
    return inputs


def choice_losses(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    request: Request,
    choices: Sequence[str],
    format: str,
    features: FeatureCache | None = None,
) -> list[float]:
    """Negative log-likelihood of each choice with its end symbol, summed over its tokens; the lowest is the answer.

    As the original ranks IconVQA (eval_vqa.py:118-143), which is not normalised by length either; its dependence on the batch is not kept.
    """
    inputs = encode(model, processor, [request] * len(choices), format, features, choices)
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    return [float(loss) for loss in losses.sum(dim=1)]


def decode_image(image: bytes | Image.Image) -> Image.Image:
    """An RGB image. Raises ValueError for bytes that are no image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return Image.open(io.BytesIO(image)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"request: {len(image)} bytes are not a readable image ({error}); give an encoded JPEG or PNG"
        ) from error


class EndOfText(StoppingCriteria):
    """Stops each row by itself, at the end token or when its last tokens spell the end symbol."""

    def __init__(self, decode: Callable[[torch.Tensor], list[str]], end: str, end_token: int | None) -> None:
        self.decode, self.end, self.end_token = decode, end, end_token

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        """`input_ids`: (batch, tokens so far) → (batch,), True for rows that ended."""
        ended = (
            input_ids[:, -1] == self.end_token
            if self.end_token is not None
            else torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        )
        if self.end and not self.end.startswith("</"):
            texts = self.decode(input_ids[:, -TAIL:])
            ended = ended | torch.tensor([self.end in text for text in texts], device=input_ids.device)
        return ended
