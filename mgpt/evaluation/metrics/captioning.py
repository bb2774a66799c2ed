"""What a caption names: object recall and hallucinated objects, in the manner of CHAIR (Rohrbach et al. 2018).

- `*_object_recall`: objects of the image that the text names / objects of the image;
- `*_hallucinated_objects` (CHAIR_i): named objects that are not in the image / named objects, repeats counted;
- `*_with_hallucination` (CHAIR_s): texts with at least one such object / texts;
- `*_words`: mean length in words.

Truth is the objects annotated in the image together with those that its reference captions name, as CHAIR takes it. Rates are 0..1, not
per cent.
"""

from __future__ import annotations

from functools import partial

from mgpt.data.text_utils import words
from mgpt.data.vocabulary import Vocabulary
from mgpt.evaluation.examples import Item
from mgpt.evaluation.metrics import degeneration
from mgpt.evaluation.scoring import Family, Judge, Judgement, Metric, Part


def objects(vocabulary: Vocabulary, item: Item, text: str) -> dict[str, Part]:
    """The four metrics of one text, named after the item's task."""
    named = vocabulary.mentions(text)
    wrong = [mention for mention in named if not vocabulary.is_present(mention, item.objects)]
    truth = set(item.objects)
    return {
        f"{item.task}_object_recall": Part(float(len(truth & set(named))), float(len(truth))),
        f"{item.task}_hallucinated_objects": Part(float(len(wrong)), float(len(named))),
        f"{item.task}_with_hallucination": Part(float(bool(wrong))),
        f"{item.task}_words": Part(float(len(words(text)))),
    }


def _judge_caption(vocabulary: Vocabulary, item: Item, text: str, finished: bool) -> Judgement:
    return Judgement(objects(vocabulary, item, text), parsed=bool(words(text)))


def _judge_description(vocabulary: Vocabulary, item: Item, text: str, finished: bool) -> Judgement:
    kinds = degeneration.parts(item, text, finished).parts
    return Judgement(objects(vocabulary, item, text) | kinds, parsed=bool(words(text)))


def object_metrics(task: str) -> tuple[Metric, ...]:
    """The metrics of `objects`."""
    return (
        Metric(f"{task}_object_recall", headline=True),
        Metric(f"{task}_hallucinated_objects", higher_is_better=False, headline=True),
        Metric(f"{task}_with_hallucination", higher_is_better=False),
        Metric(f"{task}_words", has_chance=False, descriptive=True),
    )


def caption_family(vocabulary: Vocabulary, task: str = "caption") -> Family:
    """Short captions: objects only."""
    judge: Judge = partial(_judge_caption, vocabulary)
    return Family(task, object_metrics(task), judge)


def description_family(vocabulary: Vocabulary, task: str = "describe") -> Family:
    """Long descriptions: objects, and the failures of `mgpt.evaluation.metrics.degeneration`, which have no chance level."""
    judge: Judge = partial(_judge_description, vocabulary)
    failing = [Metric(f"{task}_failure_rate", higher_is_better=False, headline=True, has_chance=False)]
    failing += [
        Metric(f"{task}_{kind}", higher_is_better=False, has_chance=False)
        for kind in ("empty", "repetition", "unfinished")
    ]
    return Family(task, (*object_metrics(task), *failing), judge)
