"""The original's text normalisation, which its training questions and captions went through."""

import re
from collections.abc import Collection

from mgpt.data.types import BOX_TOKEN, Sample, Turn

MAX_WORDS = 50
PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
SPACES = re.compile(r"\s{2,}")
# The normaliser blanks colons, so a box token travels as a word that it leaves alone.
BOX_PLACEHOLDER = re.compile(r"<box-(\d{1,9})>")


def normalize_text(text: str, words: int = MAX_WORDS) -> str:
    """Lower-case, `. ! " ( ) * # : ; ~` to spaces, runs of white space to one space, first `words` words.

    Source: original code, processors/blip_processors.py:28-68. Question marks, commas, dashes, apostrophes and all brackets but round
        ones survive.
    """
    plain = SPACES.sub(" ", PUNCTUATION.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(plain.split(" ")[:words])


def normalize_turn(turn: Turn, words: int = MAX_WORDS) -> Turn:
    """A turn with its text and alternatives normalised and its box tokens kept."""
    return Turn(turn.role, _shielded(turn.text, words), tuple(_shielded(text, words) for text in turn.alternatives))


def _shielded(text: str, words: int) -> str:
    return BOX_PLACEHOLDER.sub(r"<box:\1>", normalize_text(BOX_TOKEN.sub(r"<box-\1>", text), words))


def normalize_sample(sample: Sample, roles: Collection[str], words: int = MAX_WORDS) -> Sample:
    """A sample with the turns of the given roles normalised; the same object when nothing changes.

    Which roles a dataset normalises stands in its card (`Card.normalised_roles`).
    """
    turns = tuple(normalize_turn(turn, words) if turn.role in roles else turn for turn in sample.turns)
    return sample if turns == sample.turns else sample.revise(turns=turns)
