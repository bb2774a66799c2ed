"""Held-out samples as things to ask: a request, the truth it is scored against, and the slices it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mgpt.data.boxes import PHRASE, Box
from mgpt.data.tasks import BOX_TOKENS, Message, Task, prompt, write_boxes
from mgpt.data.types import BOX_TOKEN, Sample
from mgpt.data.vocabulary import Vocabulary

TELLING = ("caption", "caption-bare", "describe", "grounding")  # tasks whose references name what is in the image
ABOUT_ONE_BOX = ("refer", "identify")
# Tasks that are scored as another; each keeps its own prompt.
KINDRED = {"vqa": ("vqa", "vqa-unanswerable", "statement", "hateful-meme")}
# A task without held-out samples of its own is asked of the images of these, in this order.
STAND_INS = {"describe": ("caption", "caption-bare"), "caption": ("caption-bare", "describe")}


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase of a reference and its true boxes in pixels."""

    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Item:
    """One question of an evaluation.

    `id`: unique among all items: task, the sample's id, and the number of the expression. `key`: the dataset's own id of the record, under
    which a prediction is reported. `references`: acceptable answers as model text. `objects`: names of what is in the image. `slices`:
    pairs such as ("objects", "3").
    """

    id: str
    key: str
    task: str
    dataset: str
    image: bytes
    width: int
    height: int
    messages: tuple[Message, ...]
    references: tuple[str, ...]
    phrases: tuple[GroundedPhrase, ...] = ()
    objects: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    slices: tuple[tuple[str, str], ...] = ()

    @property
    def question(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class ItemRules:
    """How samples become items: `limit` items a task (the first of a seeded order, so that a smaller limit asks a part of the same items),
    `size_limits`: name of a size -> largest share of the image that a box of this size takes, ascending; `tasks`: the tasks by name,
    None for the shipped ones."""

    limit: int
    seed: int
    size_limits: Mapping[str, float]
    tasks: Mapping[str, Task] | None = None


def build_items(samples: Sequence[Sample], task: str, vocabulary: Vocabulary, rules: ItemRules) -> list[Item]:
    """The items of a task, at most `rules.limit`, in a seeded order that does not depend on the order of the samples."""
    chosen = _samples_of(samples, task)
    order = np.random.default_rng(rules.seed).permutation(len(chosen))
    truth = _objects_by_image(samples, vocabulary)
    items: list[Item] = []
    for i in order:
        if len(items) >= rules.limit:
            break
        each = _one_each(chosen[i], task)
        items += [_item(sample, (number, len(each)), task, truth, rules) for number, sample in enumerate(each)]
    return items[: rules.limit]


def _samples_of(samples: Sequence[Sample], task: str) -> list[Sample]:
    for names in (KINDRED.get(task, (task,)), *((name,) for name in STAND_INS.get(task, ()))):
        found = {sample.id: sample for sample in samples if sample.task in names and sample.image is not None}
        if found:
            return (
                _one_a_image(found[i] for i in sorted(found)) if task in TELLING else [found[i] for i in sorted(found)]
            )
    return []


def _one_a_image(samples: Iterable[Sample]) -> list[Sample]:
    """The first sample of every image: an image is described once."""
    return list({_image(sample): sample for sample in reversed(list(samples))}.values())[::-1]


def _one_each(sample: Sample, task: str) -> list[Sample]:
    """A referring sample with several expressions is asked once for each; any other sample once."""
    asked = sample.turns[0]
    if task != "refer" or len(asked.alternatives) < 2:
        return [sample]
    expressions = [dataclasses.replace(asked, text=text, alternatives=()) for text in asked.alternatives]
    return [dataclasses.replace(sample, turns=(turn, *sample.turns[1:])) for turn in expressions]


def _item(
    sample: Sample, place: tuple[int, int], task: str, truth: Mapping[str, tuple[str, ...]], rules: ItemRules
) -> Item:
    assert sample.image is not None
    number, of = place
    objects = truth[_image(sample)]
    return Item(
        id=f"{task}-{sample.id}-{number}",
        key=str(sample.extra.get("key", sample.source or sample.id)) + (f"/{number}" if of > 1 else ""),
        task=task,
        dataset=sample.dataset,
        image=sample.image,
        width=sample.width,
        height=sample.height,
        messages=tuple(
            prompt(sample, task=sample.task if sample.task in KINDRED.get(task, ()) else task, tasks=rules.tasks)
        ),
        references=tuple(write_boxes(text, sample.boxes, sample.width, sample.height) for text in sample.references),
        phrases=_phrases(sample, task),
        objects=tuple(sorted(set(objects))),
        choices=tuple(map(str, sample.extra.get("choices", ()))),
        slices=_slices(sample, task, len(objects), rules),
    )


def _image(sample: Sample) -> str:
    return hashlib.sha256(sample.image or b"").hexdigest()


def _objects_by_image(samples: Sequence[Sample], vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Annotated objects (one entry an instance) and, after them, objects that only the reference texts of the same image name."""
    annotated: dict[str, list[str]] = {}
    told: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        image = _image(sample)
        instances = [
            name
            for given in sample.extra.get("objects", ())
            for name in vocabulary.mentions(str(given)) or [str(given)]
        ]
        if len(instances) >= len(annotated.get(image, ())):
            annotated[image] = instances
        if sample.task in TELLING:
            told[image].update(name for text in sample.references for name in vocabulary.mentions(text))
    return {image: (*found, *sorted(told[image] - set(found))) for image, found in annotated.items()}


def _phrases(sample: Sample, task: str) -> tuple[GroundedPhrase, ...]:
    answer = sample.references[0] if sample.references else ""
    if task == "refer":
        return (GroundedPhrase(sample.turns[0].text, _boxes_in(answer, sample)),)
    found = []
    for match in PHRASE.finditer(answer):
        run = re.compile(r"\s*" + BOX_TOKENS.pattern).match(answer, match.end())
        found.append(GroundedPhrase(match.group(1).strip(), _boxes_in(run.group() if run else "", sample)))
    return tuple(found)


def _boxes_in(text: str, sample: Sample) -> tuple[Box, ...]:
    return tuple(sample.boxes[int(number)] for number in BOX_TOKEN.findall(text))


def _slices(sample: Sample, task: str, objects: int, rules: ItemRules) -> tuple[tuple[str, str], ...]:
    found = [("objects", str(objects))] if objects else []
    if task in ABOUT_ONE_BOX and sample.boxes:
        share = sample.boxes[0].area / max(1, sample.width * sample.height)
        found.append(
            (
                "size",
                next(
                    (name for name, limit in rules.size_limits.items() if share <= limit), list(rules.size_limits)[-1]
                ),
            )
        )
    if "kind" in sample.extra:
        found.append(("kind", str(sample.extra["kind"])))
    return (*found, ("dataset", sample.dataset))
