"""Failures of long descriptions (MiniGPT-4 paper, ablation of the second stage): repetition, unfinished text, nothing said.

The paper counts fragmented, repetitive or irrelevant texts by hand and gives no definition; these are ours, and deterministic:
- *empty*: fewer than three words;
- *repetition*: one sentence occurs twice (case and punctuation ignored, sentences of three words or more), or a run of one to eight words
  is said three times in a row;
- *unfinished*: generation was stopped by the token limit, or the text does not end as a sentence does. A description fails when at least
  one of them holds.
"""

from __future__ import annotations

from mgpt.data.text_utils import is_ended, sentences, words

FEWEST_WORDS = 3
LONGEST_RUN = 8
TIMES = 3


def failures(text: str, finished: bool) -> list[str]:
    """The kinds of failure of a description, in the order empty, repetition, unfinished; an empty list for a sound one."""
    kinds = []
    if len(words(text)) < FEWEST_WORDS:
        kinds.append("empty")
    if has_repetition(text):
        kinds.append("repetition")
    if not finished or not is_ended(text):
        kinds.append("unfinished")
    return kinds


def has_repetition(text: str) -> bool:
    """See the module's definition."""
    spoken = [" ".join(words(sentence)) for sentence in sentences(text)]
    spoken = [sentence for sentence in spoken if len(sentence.split()) >= FEWEST_WORDS]
    return len(set(spoken)) < len(spoken) or _stutters(words(text))


def _stutters(spoken: list[str]) -> bool:
    for length in range(1, LONGEST_RUN + 1):
        same = 0
        for i in range(length, len(spoken)):
            same = same + 1 if spoken[i] == spoken[i - length] else 0
            if same >= length * (TIMES - 1):
                return True
    return False
