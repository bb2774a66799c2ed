"""Grounded captions: precision and recall of (phrase, box) pairs.

A predicted pair is right when a true pair, not yet taken, has the same phrase (case, punctuation and articles ignored, or the same objects
of the vocabulary) and overlaps by more than half. Pairs are matched greedily in the order of the answer, each with the free true pair of
most overlap. `grounding_box_recall` ignores the phrases.
"""

from __future__ import annotations

from functools import partial

from mgpt.data.boxes import Box, iou, parse_grounded, to_pixels
from mgpt.data.text_utils import normalize_answer
from mgpt.data.vocabulary import Vocabulary
from mgpt.evaluation.examples import Item
from mgpt.evaluation.scoring import Family, Judge, Judgement, Metric, Part

THRESHOLD = 0.5
Pair = tuple[str, Box]


def predicted_pairs(text: str, width: int, height: int) -> list[Pair]:
    """Every phrase with each of its boxes in pixels, in the order of the answer."""
    return [(part.phrase, to_pixels(grid, width, height)) for part in parse_grounded(text) for grid in part.boxes]


def matched(predicted: list[Pair], truth: list[Pair], vocabulary: Vocabulary | None) -> int:
    """How many predicted pairs find a true pair of their own; without a vocabulary the phrases are ignored."""
    free = list(truth)
    count = 0
    for phrase, box in predicted:
        fitting = [pair for pair in free if vocabulary is None or same_phrase(phrase, pair[0], vocabulary)]
        best = max(fitting, key=lambda pair: iou(box, pair[1]), default=None)
        if best is not None and iou(box, best[1]) > THRESHOLD:
            free.remove(best)
            count += 1
    return count


def same_phrase(first: str, second: str, vocabulary: Vocabulary) -> bool:
    """Equal words, or the same named objects."""
    named = vocabulary.mentions(first)
    return normalize_answer(first) == normalize_answer(second) or (bool(named) and named == vocabulary.mentions(second))


def _judge(vocabulary: Vocabulary, item: Item, text: str, finished: bool) -> Judgement:
    predicted = predicted_pairs(text, item.width, item.height)
    truth = [(phrase.text, box) for phrase in item.phrases for box in phrase.boxes]
    right = matched(predicted, truth, vocabulary)
    boxes_right = matched(predicted, truth, None)
    parts = {
        "grounding_precision": Part(float(right), float(len(predicted))),
        "grounding_recall": Part(float(right), float(len(truth))),
        "grounding_box_recall": Part(float(boxes_right), float(len(truth))),
    }
    return Judgement(parts, parsed=bool(predicted))


def grounding_family(vocabulary: Vocabulary, task: str = "grounding") -> Family:
    """Phrase and box metrics of grounded captions."""
    judge: Judge = partial(_judge, vocabulary)
    return Family(
        task,
        (
            Metric("grounding_precision", headline=True),
            Metric("grounding_recall", headline=True),
            Metric("grounding_box_recall"),
        ),
        judge,
    )
