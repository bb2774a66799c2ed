"""From a conversation to its pieces: text segments, images, and which of them are supervised (minigpt_base.py:83-308)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mgpt.models.prompt_formats import IMAGE_MARK, IMAGE_TEXT, PromptFormat


@dataclass(frozen=True)
class Piece:
    """One text segment that is tokenised on its own, or one image (then text is empty)."""

    text: str = ""
    supervised: bool = False
    is_image: bool = False


def as_conversations(value: Any) -> list[Any]:
    """A list of conversations from one or many; each is a list of messages or a string. ValueError for anything else."""
    if isinstance(value, (str, dict)):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"conversations: expected a list of message lists, got {value!r}")
    talks = [list(value)] if isinstance(value[0], dict) else list(value)
    for place, talk in enumerate(talks):
        if not isinstance(talk, (str, list, tuple)):
            raise ValueError(f"conversations[{place}]: expected a list of messages or a whole prompt, got {talk!r}")
    return [
        _text(talk, f"conversations[{place}]")
        if isinstance(talk, str)
        else [_message(entry, f"conversations[{place}][{turn}]") for turn, entry in enumerate(talk)]
        for place, talk in enumerate(talks)
    ]


def images_in(talk: Any) -> list[Any]:
    """The images that the messages of one conversation carry in transformers' list form, in reading order."""
    parts = [part for message in talk if isinstance(message.get("content"), list) for part in message["content"]]
    images = [part for part in parts if part.get("type") == "image"]
    return [part[key] for part in images for key in ("image", "url", "path") if key in part]


def lay_out(talk: str | list[dict[str, str]], chosen: PromptFormat, training: bool, bos: str, name: str) -> list[Piece]:
    """The pieces of one conversation.

    A row opens with `bos`; later questions open with it again; an answer and its end symbol are one segment. A string is a whole original
    prompt. ValueError, starting with `name`, when the messages are not question, answer, question, ...
    """
    if isinstance(talk, str):
        if training:
            raise ValueError(
                f"{name}: a string is an open prompt and has no answer to train on; give messages, or labels=False"
            )
        return [Piece(bos), *_segments(talk)]
    talk = _with_question(talk, chosen)
    _check_roles(talk, training, name)
    pieces = [Piece(bos)]
    for turn, message in enumerate(talk):
        if message["role"] == "assistant":
            pieces.append(Piece(message["content"] + chosen.end, supervised=training))
        else:
            repeat = bos if turn or (chosen.open_bos and not training) else ""
            pieces += _segments(repeat + chosen.wrap(message["content"], training))
    return pieces


def _segments(text: str) -> list[Piece]:
    first, *rest = text.split(IMAGE_MARK)
    pieces = [Piece(first)]
    for segment in rest:
        pieces += [Piece(is_image=True), Piece(segment)]
    return pieces


def _with_question(talk: list[dict[str, str]], chosen: PromptFormat) -> list[dict[str, str]]:
    """A format without a prompt needs no user message: one image is meant."""
    if chosen.template is None and talk and talk[0]["role"] == "assistant":
        return [{"role": "user", "content": IMAGE_MARK}, *talk]
    return talk


def _check_roles(talk: list[dict[str, str]], training: bool, name: str) -> None:
    for turn, message in enumerate(talk):
        expected = ("user", "assistant")[turn % 2]
        if message["role"] != expected:
            raise ValueError(
                f"{name}[{turn}].role: {message['role']!r}, expected {expected!r}; messages go user, assistant, user, ..."
            )
    last = "assistant" if training else "user"
    if not talk or talk[-1]["role"] != last:
        raise ValueError(
            f"{name}: must end with a message of the {last} {'for training' if training else 'for generation (labels=False)'}"
        )


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
            f"{name}: not valid Unicode ({error.reason} at {error.start}); decode the bytes it came from again"
        ) from error
    return value


def _part(part: Any, name: str) -> str:
    """One entry of transformers' list form of a message."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return f"{IMAGE_TEXT} "
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(
        f"{name}.content: expected parts of type 'image' or 'text', each text with its 'text'; got {part!r}"
    )
