"""Words and sentences of generated text, split identically for all metrics and filters."""

from __future__ import annotations

import re

ARTICLES = {"a", "an", "the"}
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE_GAP = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'”’)\]])\s+""")


def words(text: str) -> list[str]:
    """Returns the lower-case words: runs of letters and digits, with inner apostrophes."""
    return WORD.findall(text.lower())


def normalize_answer(text: str) -> str:
    """Returns the words without articles and punctuation, joined by single spaces."""
    return " ".join(word for word in words(text.replace("<unk>", " ")) if word not in ARTICLES)


def sentences(text: str) -> list[str]:
    """Splits a text into sentences with their end marks; the last one may lack its mark. No word is lost."""
    return [sentence for sentence in SENTENCE_GAP.split(" ".join(text.split())) if sentence]


def is_ended(text: str) -> bool:
    """Returns true if the text ends with `.`, `!` or `?`, optionally followed by quotes or brackets."""
    return bool(re.search(r"[.!?][\"'”’)\]]*$", text.rstrip()))
