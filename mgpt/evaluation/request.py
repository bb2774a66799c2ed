"""A conversation that is sent to a model, and what comes back. Imports none of the model's code: who lets others answer needs none."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from mgpt.data.tasks import Message


@dataclass(frozen=True)
class Request:
    """`images`: encoded bytes or Pillow pictures, one for each `<ImageHere>` of the messages. `messages`: a conversation that ends with a
    user message.
    """

    images: tuple[bytes | Image.Image, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Answer:
    """`text` without the end symbol. `finished`: whether the model ended it, rather than the token limit. `tokens`: new tokens, the end
    symbol included.
    """

    text: str
    finished: bool
    tokens: int = 0
