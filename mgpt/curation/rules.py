"""Rules for text, licence and boxes of a sample. A broken rule's name is the reject reason in the quarantine table."""

from __future__ import annotations

import math
import re

from mgpt.config.sources import CurateSettings
from mgpt.data.boxes import Box
from mgpt.data.types import BOX_TOKEN, Sample

CAPTION_TASKS = ("caption", "caption-bare", "describe", "grounding")
_LETTER = re.compile(r"[^\W\d_]")
_LINK = re.compile(r"^\s*(?:https?://|www\.)\S+\s*$", re.IGNORECASE)
_FILE_NAME = re.compile(r"^\s*[\w\-]+\.(?:jpe?g|png|gif|webp|bmp|tiff?)\s*$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_REPEAT = re.compile(r"(.)\1{19,}|(\b\w+\b)(?:\W+\2){9,}", re.DOTALL)


class InvalidSample(ValueError):
    """The sample cannot be used; `reason` is its reject reason in the quarantine table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def check_sample(sample: Sample, settings: CurateSettings) -> None:
    """Checks text, then licence; `fit_box` checks boxes.

    Raises:
        InvalidSample: text too long, empty text, caption too short, junk text, licence not allowed.
    """
    for turn in sample.turns:
        for text in (turn.text, *turn.alternatives):
            if len(text) > settings.text_maximum_characters:
                raise InvalidSample("text too long", f"{len(text)} > {settings.text_maximum_characters} characters")
        if turn.role == "assistant":
            for text in turn.alternatives or (turn.text,):
                _check_answer(text, sample.task in CAPTION_TASKS, settings)
    if settings.licences and sample.licence not in settings.licences:
        raise InvalidSample("licence not allowed", f"{sample.licence!r} is not in curate.licences")


def _check_answer(text: str, caption: bool, settings: CurateSettings) -> None:
    if not text.strip():
        raise InvalidSample("empty text", "the answer is empty")
    if _CONTROL.search(text) or _REPEAT.search(text):
        raise InvalidSample("junk text", repr(text[:60]))
    if not caption:
        return
    caption_text = BOX_TOKEN.sub(" ", text)
    if len(caption_text.strip()) < settings.caption_minimum_characters:
        raise InvalidSample("caption too short", repr(text))
    if _LINK.match(caption_text) or _FILE_NAME.match(caption_text) or not _LETTER.search(caption_text):
        raise InvalidSample("junk text", repr(text[:60]))


def fit_box(box: Box, width: int, height: int, settings: CurateSettings) -> Box:
    """Returns a box clipped to an image of `width` x `height` pixels; overshoots up to `box_tolerance` are tolerated.

    Raises:
        InvalidSample: box not finite, box reversed, box outside the image, box degenerate.
    """
    detail = f"{tuple(box)} on {width}x{height}"
    if not all(math.isfinite(value) for value in box):
        raise InvalidSample("box not finite", detail)
    if box.x2 < box.x1 or box.y2 < box.y1:
        raise InvalidSample("box reversed", detail)
    tolerance = settings.box_tolerance
    if box.x1 < -tolerance or box.y1 < -tolerance or box.x2 > width + tolerance or box.y2 > height + tolerance:
        raise InvalidSample("box outside the image", detail)
    fitted = Box(max(box.x1, 0.0), max(box.y1, 0.0), min(box.x2, float(width)), min(box.y2, float(height)))
    if fitted.x2 - fitted.x1 < settings.box_minimum_side or fitted.y2 - fitted.y1 < settings.box_minimum_side:
        raise InvalidSample("box degenerate", detail)
    return fitted
