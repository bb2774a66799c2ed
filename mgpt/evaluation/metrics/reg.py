"""Referring expression generation: agreement with any expression that people gave for the region.

- `reg_exact`: equal to a reference when case, punctuation and articles are ignored;
- `reg_word_overlap`: the best F1 of words with a reference, 0..1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mgpt.data.text_utils import normalize_answer, words
from mgpt.evaluation.metrics import METRICS
from mgpt.evaluation.types import Contribution, Example, ExampleScore, MetricFamily

MAX_CONSTANTS = 32


def score(example: Example, text: str, finished: bool) -> ExampleScore:
    """Scores one expression against all references."""
    answer = normalize_answer(text)
    references = [normalize_answer(reference) for reference in example.references]
    overlap = max((word_f1(answer.split(), reference.split()) for reference in references), default=0.0)
    contributions = {
        "reg_exact": Contribution(float(answer in references)),
        "reg_word_overlap": Contribution(overlap),
    }
    return ExampleScore(contributions, parsed=bool(words(text)))


def word_f1(predicted: list[str], truth: list[str]) -> float:
    """Computes F1 of two bags of words, 0..1."""
    shared = sum((Counter(predicted) & Counter(truth)).values())
    return 2 * shared / (len(predicted) + len(truth)) if shared else 0.0


def constants(examples: Sequence[Example]) -> list[str]:
    """Returns the most frequent expressions."""
    counts = Counter(reference for example in examples for reference in set(example.references))
    return [text for text, _ in counts.most_common(MAX_CONSTANTS)]


FAMILY = MetricFamily("reg", METRICS["reg"], score, constants)
