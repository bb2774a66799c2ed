"""Degenerate descriptions (MiniGPT-4 paper, ablation of the second stage): empty, repetitive or unfinished text.

The paper counts fragmented, repetitive and irrelevant texts by hand and does not define them. Our definitions are
deterministic; a description is degenerate if at least one of them holds:
- *empty*: fewer than three words;
- *repetition*: one sentence occurs twice (case and punctuation ignored, sentences of three or more words), or a run
  of one to eight words occurs three times in a row;
- *unfinished*: the token limit ended generation, or the text does not end as a sentence does.
"""

from __future__ import annotations

from mgpt.data.text_utils import is_ended, sentences, words

MIN_WORDS = 3
MAX_RUN = 8
MAX_REPEATS = 2


def degeneration_kinds(text: str, finished: bool) -> list[str]:
    """Returns the kinds that apply, in the order empty, repetition, unfinished. finished: not cut by a limit."""
    kinds = []
    if len(words(text)) < MIN_WORDS:
        kinds.append("empty")
    if has_repetition(text):
        kinds.append("repetition")
    if not finished or not is_ended(text):
        kinds.append("unfinished")
    return kinds


def has_repetition(text: str) -> bool:
    """Returns whether a text is repetitive, as defined above."""
    normalized = [" ".join(words(sentence)) for sentence in sentences(text)]
    normalized = [sentence for sentence in normalized if len(sentence.split()) >= MIN_WORDS]
    return len(set(normalized)) < len(normalized) or _has_repeated_run(words(text))


def _has_repeated_run(tokens: list[str]) -> bool:
    for length in range(1, MAX_RUN + 1):
        same = 0
        for i in range(length, len(tokens)):
            same = same + 1 if tokens[i] == tokens[i - length] else 0
            if same >= length * MAX_REPEATS:
                return True
    return False
