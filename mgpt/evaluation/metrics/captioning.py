"""Objects named by captions and descriptions: recall and hallucination, after CHAIR (Rohrbach et al. 2018).

- `*_object_recall`: objects of the image that the text names / objects of the image;
- `*_hallucinated_objects` (CHAIR_i): named objects that are not in the image / named objects, repeats counted;
- `*_with_hallucination` (CHAIR_s): texts with at least one such object / texts;
- `*_words`: mean length in words.

Truth is the annotated objects of the image together with those that its reference captions name, as in CHAIR. Rates are
0..1, not per cent.
"""

from __future__ import annotations

from functools import partial

from mgpt.data.text_utils import words
from mgpt.data.vocabulary import Vocabulary
from mgpt.evaluation.metrics import METRICS, degeneration
from mgpt.evaluation.types import Contribution, Example, ExampleScore, MetricFamily


def object_contributions(vocabulary: Vocabulary, example: Example, text: str) -> dict[str, Contribution]:
    """Returns the four object metrics of one text, named after the example's task."""
    named = vocabulary.mentions(text)
    hallucinated = [mention for mention in named if not vocabulary.is_present(mention, example.objects)]
    truth = set(example.objects)
    return {
        f"{example.task}_object_recall": Contribution(float(len(truth & set(named))), float(len(truth))),
        f"{example.task}_hallucinated_objects": Contribution(float(len(hallucinated)), float(len(named))),
        f"{example.task}_with_hallucination": Contribution(float(bool(hallucinated))),
        f"{example.task}_words": Contribution(float(len(words(text)))),
    }


def _score_caption(vocabulary: Vocabulary, example: Example, text: str, finished: bool) -> ExampleScore:
    return ExampleScore(object_contributions(vocabulary, example, text), parsed=bool(words(text)))


def _score_description(vocabulary: Vocabulary, example: Example, text: str, finished: bool) -> ExampleScore:
    contributions = object_contributions(vocabulary, example, text)
    contributions |= degeneration.contributions(example.task, text, finished)
    return ExampleScore(contributions, parsed=bool(words(text)))


def captioning_family(vocabulary: Vocabulary) -> MetricFamily:
    """Metrics of short captions: objects only."""
    return MetricFamily("captioning", METRICS["captioning"], partial(_score_caption, vocabulary))


def description_family(vocabulary: Vocabulary) -> MetricFamily:
    """Metrics of long descriptions: objects and degeneration."""
    return MetricFamily("description", METRICS["description"], partial(_score_description, vocabulary))
