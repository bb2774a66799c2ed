"""Words and sentences of an answer, the same way for every metric."""

from __future__ import annotations

import re

ARTICLES = {"a", "an", "the"}
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE_GAP = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'”’)\]])\s+""")


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, apostrophes inside kept."""
    return WORD.findall(text.lower())


def normalize_answer(text: str) -> str:
    """Words without articles and punctuation, joined by one space."""
    return " ".join(word for word in words(text.replace("<unk>", " ")) if word not in ARTICLES)


def sentences(text: str) -> list[str]:
    """Sentences with their end marks, in order; the last one may lack its mark. Text that is not in a sentence does not exist: joined,
    they hold every word.
    """
    return [sentence for sentence in SENTENCE_GAP.split(" ".join(text.split())) if sentence]


def is_ended(text: str) -> bool:
    """Whether the text ends as a sentence does: with a full stop, exclamation or question mark, quotes and brackets after it allowed."""
    return bool(re.search(r"[.!?][\"'”’)\]]*$", text.rstrip()))
