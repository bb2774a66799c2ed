"""Splits a conversation into text segments and images, and marks which are supervised (minigpt_base.py:83-308)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mgpt.models.prompt_formats import IMAGE_MARK, IMAGE_TEXT, PromptFormat

Conversation = str | list[dict[str, str]]


@dataclass(frozen=True)
class Segment:
    """A text that is tokenised on its own, or an image (with an empty text)."""

    text: str = ""
    supervised: bool = False
    is_image: bool = False


def to_conversations(value: Any) -> list[Any]:
    """Returns a list of conversations from one or many; each is a list of messages or a string.

    ValueError otherwise.
    """
    if isinstance(value, (str, dict)):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"conversations: expected a list of message lists, got {value!r}")
    conversations = [list(value)] if isinstance(value[0], dict) else list(value)
    for number, conversation in enumerate(conversations):
        if not isinstance(conversation, (str, list, tuple)):
            raise ValueError(
                f"conversations[{number}]: expected a list of messages or a whole prompt, got {conversation!r}"
            )
    return [
        _text(conversation, f"conversations[{number}]")
        if isinstance(conversation, str)
        else [_message(entry, f"conversations[{number}][{turn}]") for turn, entry in enumerate(conversation)]
        for number, conversation in enumerate(conversations)
    ]


def images_in(conversation: Any) -> list[Any]:
    """Returns the images that messages carry in transformers' list form, in reading order."""
    parts = [
        part for message in conversation if isinstance(message.get("content"), list) for part in message["content"]
    ]
    images = [part for part in parts if part.get("type") == "image"]
    return [part[key] for part in images for key in ("image", "url", "path") if key in part]


def split_into_segments(
    conversation: Conversation, prompt_format: PromptFormat, training: bool, bos: str, name: str
) -> list[Segment]:
    """Returns the segments of one conversation.

    A row opens with `bos`, and so does each later question; an answer with its end symbol is one segment. A string is
    a whole prompt in the original's form. Raises ValueError, which starts with `name`, unless questions and answers
    alternate.
    """
    if isinstance(conversation, str):
        if training:
            raise ValueError(
                f"{name}: a string is an open prompt and has no answer to train on; give messages, or labels=False"
            )
        return [Segment(bos), *_split_at_images(conversation)]
    if prompt_format.template is None and conversation and conversation[0]["role"] == "assistant":
        # A format without a prompt needs no user message: one image is meant.
        conversation = [{"role": "user", "content": IMAGE_MARK}, *conversation]
    _check_roles(conversation, training, name)
    segments = [Segment(bos)]
    for turn, message in enumerate(conversation):
        if message["role"] == "assistant":
            segments.append(Segment(message["content"] + prompt_format.end, supervised=training))
        else:
            repeated = bos if turn or (prompt_format.open_bos and not training) else ""
            segments += _split_at_images(repeated + prompt_format.wrap(message["content"], training))
    return segments


def _split_at_images(text: str) -> list[Segment]:
    first, *rest = text.split(IMAGE_MARK)
    segments = [Segment(first)]
    for part in rest:
        segments += [Segment(is_image=True), Segment(part)]
    return segments


def _check_roles(conversation: list[dict[str, str]], training: bool, name: str) -> None:
    for turn, message in enumerate(conversation):
        expected = ("user", "assistant")[turn % 2]
        if message["role"] != expected:
            raise ValueError(
                f"{name}[{turn}].role: {message['role']!r}, expected {expected!r}; "
                "messages alternate, starting with user"
            )
    last = "assistant" if training else "user"
    if not conversation or conversation[-1]["role"] != last:
        purpose = "for training" if training else "for generation (labels=False)"
        raise ValueError(f"{name}: must end with a message of the {last} {purpose}")


def _message(entry: Any, name: str) -> dict[str, str]:
    if not isinstance(entry, dict) or not {"role", "content"} <= entry.keys():
        raise ValueError(f"{name}: expected {{'role': ..., 'content': ...}}, got {entry!r}")
    content = entry["content"]
    if isinstance(content, list):
        content = "".join(_part(part, name) for part in content)
    return {"role": entry["role"], "content": _text(content, f"{name}.content")}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: not valid Unicode ({error.reason} at {error.start}); decode its bytes with the right encoding"
        ) from error
    return value


def _part(part: Any, name: str) -> str:
    """Returns the text of one entry of transformers' list form of a message."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return f"{IMAGE_TEXT} "
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(
        f"{name}.content: expected parts of type 'image' or 'text', each text with its 'text'; got {part!r}"
    )
