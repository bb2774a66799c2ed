"""Grounded captions: precision and recall of (phrase, box) pairs.

A predicted pair is right when a true pair that is still free has the same phrase (case, punctuation and articles
ignored, or the same objects of the vocabulary) and an IoU above 0.5. Pairs are matched greedily in the order of the
answer, each with the free true pair of highest IoU. `grounded_captioning_box_recall` ignores the phrases.
"""

from __future__ import annotations

from functools import partial

from mgpt.data.boxes import Box, iou, parse_grounded, to_pixels
from mgpt.data.text_utils import normalize_answer
from mgpt.data.vocabulary import Vocabulary
from mgpt.evaluation.metrics import METRICS
from mgpt.evaluation.types import Contribution, Example, ExampleScore, MetricFamily

IOU_THRESHOLD = 0.5
Pair = tuple[str, Box]


def predicted_pairs(text: str, width: int, height: int) -> list[Pair]:
    """Returns every phrase with each of its boxes in pixels, in the order of the answer."""
    return [(part.phrase, to_pixels(grid, width, height)) for part in parse_grounded(text) for grid in part.boxes]


def count_matches(predicted: list[Pair], truth: list[Pair], vocabulary: Vocabulary | None) -> int:
    """Counts predicted pairs that match a true pair of their own; without a vocabulary the phrases are ignored."""
    free = list(truth)
    count = 0
    for phrase, box in predicted:
        candidates = [pair for pair in free if vocabulary is None or same_phrase(phrase, pair[0], vocabulary)]
        best = max(candidates, key=lambda pair: iou(box, pair[1]), default=None)
        if best is not None and iou(box, best[1]) > IOU_THRESHOLD:
            free.remove(best)
            count += 1
    return count


def same_phrase(first: str, second: str, vocabulary: Vocabulary) -> bool:
    """Returns True for equal words or the same named objects."""
    named = vocabulary.mentions(first)
    return normalize_answer(first) == normalize_answer(second) or (bool(named) and named == vocabulary.mentions(second))


def _score(vocabulary: Vocabulary, example: Example, text: str, finished: bool) -> ExampleScore:
    predicted = predicted_pairs(text, example.width, example.height)
    truth = [(phrase.text, box) for phrase in example.phrases for box in phrase.boxes]
    pairs = float(count_matches(predicted, truth, vocabulary))
    boxes = float(count_matches(predicted, truth, None))
    contributions = {
        "grounded_captioning_precision": Contribution(pairs, float(len(predicted))),
        "grounded_captioning_recall": Contribution(pairs, float(len(truth))),
        "grounded_captioning_box_recall": Contribution(boxes, float(len(truth))),
    }
    return ExampleScore(contributions, parsed=bool(predicted))


def grounded_captioning_family(vocabulary: Vocabulary) -> MetricFamily:
    """Phrase and box metrics of grounded captions."""
    return MetricFamily("grounded_captioning", METRICS["grounded_captioning"], partial(_score, vocabulary))
