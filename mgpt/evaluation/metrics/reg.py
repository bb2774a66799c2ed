"""Referring expression generation: exact match with any expression that people gave for the region, after normalisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mgpt.data.text_utils import normalize_answer, words
from mgpt.evaluation.examples import Item
from mgpt.evaluation.scoring import Family, Judgement, Metric, Part


def judge(item: Item, text: str, finished: bool) -> Judgement:
    """`identify_exact`: equal to a reference when case, punctuation and articles are ignored. `identify_word_overlap`: the best F1 of
    words with a reference (0..1).
    """
    answer = normalize_answer(text)
    exact = any(answer == normalize_answer(reference) for reference in item.references)
    overlap = max(
        (word_f1(answer.split(), normalize_answer(reference).split()) for reference in item.references), default=0.0
    )
    return Judgement(
        {"identify_exact": Part(float(exact)), "identify_word_overlap": Part(overlap)}, parsed=bool(words(text))
    )


def word_f1(predicted: list[str], truth: list[str]) -> float:
    """F1 of two bags of words, 0..1."""
    shared = sum((Counter(predicted) & Counter(truth)).values())
    return 2 * shared / (len(predicted) + len(truth)) if shared else 0.0


def constants(items: Sequence[Item]) -> list[str]:
    """The most frequent expressions."""
    return [
        text for text, _ in Counter(reference for item in items for reference in set(item.references)).most_common(32)
    ]


FAMILY = Family(
    "identify", (Metric("identify_exact", headline=True), Metric("identify_word_overlap")), judge, constants
)
