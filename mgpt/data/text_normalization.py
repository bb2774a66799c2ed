"""Normalization of training text, as in the original code."""

import re
from collections.abc import Collection

from mgpt.data.types import BOX_TOKEN, Sample, Turn

MAX_WORDS = 50
PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
SPACES = re.compile(r"\s{2,}")
# Normalization removes colons, so `<box:N>` is written as `<box-N>` meanwhile.
BOX_PLACEHOLDER = re.compile(r"<box-(\d{1,9})>")


def normalize_text(text: str, words: int = MAX_WORDS) -> str:
    """Lower-cases, replaces `. ! " ( ) * # : ; ~` by spaces, collapses white space and keeps the first `words` words.

    Question marks, commas, dashes, apostrophes and all brackets but round ones are kept.
    Source: original code, processors/blip_processors.py:28-68.
    """
    plain = SPACES.sub(" ", PUNCTUATION.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(plain.split(" ")[:words])


def normalize_turn(turn: Turn, words: int = MAX_WORDS) -> Turn:
    """Normalizes the text and alternatives of a turn; box tokens are kept."""

    def normalize(text: str) -> str:
        return BOX_PLACEHOLDER.sub(r"<box:\1>", normalize_text(BOX_TOKEN.sub(r"<box-\1>", text), words))

    return Turn(turn.role, normalize(turn.text), tuple(map(normalize, turn.alternatives)))


def normalize_sample(sample: Sample, roles: Collection[str], words: int = MAX_WORDS) -> Sample:
    """Normalizes the turns of the given roles; returns the same object if nothing changes.

    A dataset's card lists the roles that the original normalizes (`Card.normalized_roles`).
    """
    turns = tuple(normalize_turn(turn, words) if turn.role in roles else turn for turn in sample.turns)
    return sample if turns == sample.turns else sample.revise(turns=turns)
