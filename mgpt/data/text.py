"""The original's text normalisation, which its training questions and captions went through."""

import re
from collections.abc import Collection

from mgpt.data.types import BOX_TOKEN, Sample, Turn

WORDS = 50
PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
SPACES = re.compile(r"\s{2,}")
# The normaliser blanks colons, so a box token travels as a word that it leaves alone.
SHIELD = re.compile(r"<box-(\d{1,9})>")


def normalise(text: str, words: int = WORDS) -> str:
    """Lower-case, `. ! " ( ) * # : ; ~` to spaces, runs of white space to one space, first `words` words.

    Source: original code, processors/blip_processors.py:28-68. Question marks, commas, dashes, apostrophes and all brackets but round
        ones survive.
    """
    plain = SPACES.sub(" ", PUNCTUATION.sub(" ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(plain.split(" ")[:words])


def normalise_turn(turn: Turn, words: int = WORDS) -> Turn:
    """A turn with its text and alternatives normalised and its box tokens kept."""
    return Turn(turn.role, _shielded(turn.text, words), tuple(_shielded(text, words) for text in turn.alternatives))


def _shielded(text: str, words: int) -> str:
    return SHIELD.sub(r"<box:\1>", normalise(BOX_TOKEN.sub(r"<box-\1>", text), words))


def normalise_sample(sample: Sample, roles: Collection[str], words: int = WORDS) -> Sample:
    """A sample with the turns of the given roles normalised; the same object when nothing changes.

    Which roles a dataset normalises stands in its card (`Card.normalised_roles`).
    """
    turns = tuple(normalise_turn(turn, words) if turn.role in roles else turn for turn in sample.turns)
    return sample if turns == sample.turns else sample.revise(turns=turns)
