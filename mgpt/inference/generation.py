"""Greedy generation in batches, with the same text for a request alone or in a batch.

Requests are sorted by length, so that a batch holds little padding. Rows are padded on the left, and each stops at
its own end; a row that has ended is padded until the batch is done, and never influences another row.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

from mgpt.inference.types import GenerationOutput, GenerationRequest
from mgpt.models import PROMPT_FORMATS, MiniGPTForConditionalGeneration, MiniGPTProcessor

END_TOKENS = 8  # the end symbol is searched for in this many last tokens; no tokenizer needs more for it


class FeatureCache:
    """Features of images by content.

    Training does not change them, so they serve all checkpoints on the same backbones.
    """

    def __init__(self, model: MiniGPTForConditionalGeneration) -> None:
        self.model = model
        self.known: dict[bytes, torch.Tensor] = {}

    def __call__(self, images: Sequence[bytes | Image.Image], pixels: torch.Tensor) -> torch.Tensor:
        """Encodes images with `pixels` (images, 3, side, side) to (images, image tokens, projection inputs)."""
        keys = [hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest() for image in images]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            with torch.no_grad():
                encoded = self.model.encode_images(pixels[new])
            self.known.update({keys[i]: encoded[row] for row, i in enumerate(new)})
        return torch.stack([self.known[key] for key in keys])


def generate(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    requests: Sequence[GenerationRequest],
    format: str,
    max_new_tokens: int,
    batch_size: int = 32,
    features: FeatureCache | None = None,
) -> list[GenerationOutput]:
    """Returns the outputs in the order of the requests.

    Args:
        format: prompt format, a key of `PROMPT_FORMATS`.
        features: caches image features across calls.

    Raises:
        ValueError: the format is unknown, a request does not end with a user message, or an image cannot be read.
    """
    _check(requests, format, max_new_tokens, batch_size)
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].images), _length(requests[i])))
    outputs: dict[int, GenerationOutput] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [requests[i] for i in chosen]
        generated = _generate_batch(model, processor, batch, format, max_new_tokens, features)
        outputs.update(zip(chosen, generated, strict=True))
    return [outputs[i] for i in range(len(requests))]


def _check(requests: Sequence[GenerationRequest], format: str, max_new_tokens: int, batch_size: int) -> None:
    if format not in PROMPT_FORMATS:
        raise ValueError(f"format: '{format}' is not a prompt format; use one of {', '.join(PROMPT_FORMATS)}")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens ({max_new_tokens}) and batch_size ({batch_size}) must be at least 1")
    for number, request in enumerate(requests):
        if not request.messages or request.messages[-1]["role"] != "user":
            raise ValueError(
                f"request {number}: the conversation must end with a user message, which is the one to answer"
            )


def _length(request: GenerationRequest) -> int:
    return sum(len(message["content"]) for message in request.messages)


def _generate_batch(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    requests: Sequence[GenerationRequest],
    format: str,
    max_new_tokens: int,
    features: FeatureCache | None,
) -> list[GenerationOutput]:
    inputs = encode(model, processor, requests, format, features)
    tokenizer = processor.tokenizer
    stop = StopAtEndSymbol(
        lambda rows: tokenizer.batch_decode(rows, skip_special_tokens=False),
        PROMPT_FORMATS[format].end,
        tokenizer.eos_token_id,
    )
    criteria = StoppingCriteriaList([stop])
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, stopping_criteria=criteria)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    counts = (tokens != padding).sum(dim=1).tolist()
    answers = processor.answers(tokens, format)
    return [GenerationOutput(*answer, count) for answer, count in zip(answers, counts, strict=True)]


def encode(
    model: MiniGPTForConditionalGeneration,
    processor: MiniGPTProcessor,
    requests: Sequence[GenerationRequest],
    format: str,
    features: FeatureCache | None = None,
    answers: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """Returns model inputs on the model's device, left-padded; labelled if there is an answer for each request."""
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
    request: GenerationRequest,
    choices: Sequence[str],
    format: str,
    features: FeatureCache | None = None,
) -> list[float]:
    """Returns the negative log-likelihood of each choice with its end symbol, summed over its tokens.

    The original ranks IconVQA so (eval_vqa.py:118-143), also without normalising by length. Its dependence on the
    batch is not reproduced.
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
    """Returns an RGB image. Raises ValueError for bytes that are not an image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return Image.open(io.BytesIO(image)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"request: {len(image)} bytes are not a readable image ({error}); give an encoded JPEG or PNG"
        ) from error


class StopAtEndSymbol(StoppingCriteria):
    """Stops each row at the end token, or when its last tokens contain the end symbol."""

    def __init__(self, decode: Callable[[torch.Tensor], list[str]], end: str, end_token: int | None) -> None:
        self.decode, self.end, self.end_token = decode, end, end_token

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        """Returns (batch,) booleans, True for rows that have ended. input_ids: (batch, tokens so far)."""
        ended = (
            input_ids[:, -1] == self.end_token
            if self.end_token is not None
            else torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        )
        if self.end and not self.end.startswith("</"):
            texts = self.decode(input_ids[:, -END_TOKENS:])
            ended = ended | torch.tensor([self.end in text for text in texts], device=input_ids.device)
        return ended
