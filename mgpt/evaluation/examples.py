"""Examples from held-out samples: the question, the references it is scored against, and the slices it belongs to."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mgpt.data.boxes import PHRASE, Box
from mgpt.data.tasks import BOX_TOKENS, Task, prompt, write_boxes
from mgpt.data.types import BOX_TOKEN, Sample
from mgpt.data.vocabulary import Vocabulary
from mgpt.evaluation.types import Example, GroundedPhrase

# Evaluation task -> tasks of the samples it is built from; each sample is prompted by its own task.
DATA_TASKS = {
    "rec": ("refer",),
    "reg": ("identify",),
    "vqa": ("vqa", "vqa-unanswerable", "statement", "hateful-meme"),
    "captioning": ("caption",),
    "grounded_captioning": ("grounding",),
    "description": ("describe",),
}
# Without samples of those tasks, those of the first task here that has any, prompted by the first task above.
FALLBACKS = {"description": ("caption", "caption-bare"), "captioning": ("caption-bare", "describe")}
ONE_EXAMPLE_PER_IMAGE = ("captioning", "grounded_captioning", "description")
ABOUT_ONE_BOX = ("rec", "reg")
# Data tasks whose references name objects of the image.
DESCRIBING = ("caption", "caption-bare", "describe", "grounding")


@dataclass(frozen=True)
class ExampleOptions:
    """Options of building examples from samples.

    Attributes:
        limit: examples a task, the first of a seeded order, so that a smaller limit gives a prefix of the same
            examples.
        size_limits: name of a size -> largest share of the image that a box of this size covers, ascending.
        tasks: data tasks by name; None for the shipped ones.
    """

    limit: int
    seed: int
    size_limits: Mapping[str, float]
    tasks: Mapping[str, Task] | None = None


def build_examples(
    samples: Sequence[Sample], task: str, vocabulary: Vocabulary, options: ExampleOptions
) -> list[Example]:
    """Builds at most `options.limit` examples of an evaluation task.

    Their order is seeded and does not depend on the order of the samples.
    """
    chosen = _samples_of(samples, task)
    order = np.random.default_rng(options.seed).permutation(len(chosen))
    objects = _objects_by_image(samples, vocabulary)
    examples: list[Example] = []
    for i in order:
        if len(examples) >= options.limit:
            break
        expressions = _expressions(chosen[i], task)
        for number, sample in enumerate(expressions):
            suffix = f"/{number}" if len(expressions) > 1 else ""
            examples.append(_example(sample, number, suffix, task, objects[_image_hash(sample)], options))
    return examples[: options.limit]


def _samples_of(samples: Sequence[Sample], task: str) -> list[Sample]:
    """Returns the samples with an image of the task, or of its first fallback that has any, by id."""
    for names in (DATA_TASKS[task], *((name,) for name in FALLBACKS.get(task, ()))):
        by_id = {sample.id: sample for sample in samples if sample.task in names and sample.images}
        if by_id:
            found = [by_id[i] for i in sorted(by_id)]
            return _first_of_each_image(found) if task in ONE_EXAMPLE_PER_IMAGE else found
    return []


def _first_of_each_image(samples: Iterable[Sample]) -> list[Sample]:
    return list({_image_hash(sample): sample for sample in reversed(list(samples))}.values())[::-1]


def _expressions(sample: Sample, task: str) -> list[Sample]:
    """Returns one sample for each expression of a referring sample; the sample itself for any other."""
    turn = sample.turns[0]
    if task != "rec" or len(turn.alternatives) < 2:
        return [sample]
    turns = [dataclasses.replace(turn, text=text, alternatives=()) for text in turn.alternatives]
    return [dataclasses.replace(sample, turns=(turn, *sample.turns[1:])) for turn in turns]


def _example(
    sample: Sample, number: int, suffix: str, task: str, objects: Sequence[str], options: ExampleOptions
) -> Example:
    own = sample.task in DATA_TASKS[task]
    messages = prompt(sample, task=sample.task if own else DATA_TASKS[task][0], tasks=options.tasks)
    return Example(
        id=f"{task}-{sample.id}-{number}",
        key=str(sample.extra.get("key", sample.source or sample.id)) + suffix,
        task=task,
        dataset=sample.dataset,
        image=sample.images[0].data,
        width=sample.images[0].width,
        height=sample.images[0].height,
        messages=tuple(messages),
        references=tuple(write_boxes(text, sample.boxes, sample.box_sizes) for text in sample.references),
        phrases=_phrases(sample, task),
        objects=tuple(sorted(set(objects))),
        choices=tuple(map(str, sample.extra.get("choices", ()))),
        slices=_slices(sample, task, len(objects), options),
    )


def _image_hash(sample: Sample) -> str:
    return sample.images[0].sha256 if sample.images else ""


def _objects_by_image(samples: Sequence[Sample], vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    """Returns image -> annotated objects (one entry an instance), then objects that only its references name."""
    annotated: dict[str, list[str]] = {}
    referenced: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        image = _image_hash(sample)
        instances = [
            name
            for given in sample.extra.get("objects", ())
            for name in vocabulary.mentions(str(given)) or [str(given)]
        ]
        if len(instances) >= len(annotated.get(image, ())):
            annotated[image] = instances
        if sample.task in DESCRIBING:
            referenced[image].update(name for text in sample.references for name in vocabulary.mentions(text))
    return {image: (*found, *sorted(referenced[image] - set(found))) for image, found in annotated.items()}


def _phrases(sample: Sample, task: str) -> tuple[GroundedPhrase, ...]:
    answer = sample.references[0] if sample.references else ""
    if task == "rec":
        return (GroundedPhrase(sample.turns[0].text, _boxes_in(answer, sample)),)
    found = []
    for match in PHRASE.finditer(answer):
        run = re.compile(r"\s*" + BOX_TOKENS.pattern).match(answer, match.end())
        found.append(GroundedPhrase(match.group(1).strip(), _boxes_in(run.group() if run else "", sample)))
    return tuple(found)


def _boxes_in(text: str, sample: Sample) -> tuple[Box, ...]:
    return tuple(sample.boxes[int(number)] for number in BOX_TOKEN.findall(text))


def _slices(sample: Sample, task: str, objects: int, options: ExampleOptions) -> tuple[tuple[str, str], ...]:
    found = [("objects", str(objects))] if objects else []
    if task in ABOUT_ONE_BOX and sample.boxes:
        width, height = sample.box_sizes[0]
        share = sample.boxes[0].area / max(1, width * height)
        sizes = (name for name, limit in options.size_limits.items() if share <= limit)
        found.append(("size", next(sizes, list(options.size_limits)[-1])))
    if "kind" in sample.extra:
        found.append(("kind", str(sample.extra["kind"])))
    return (*found, ("dataset", sample.dataset))
