"""Several checkpoints of one model, asked the same held-out questions, scored side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.data.tasks import Task
from mgpt.data.types import Sample
from mgpt.data.vocabulary import Vocabulary, load_vocabulary
from mgpt.evaluation.examples import Item, ItemRules, build_items
from mgpt.evaluation.metrics.captioning import caption_family, description_family
from mgpt.evaluation.metrics.grounded_captioning import grounding_family
from mgpt.evaluation.metrics.rec import FAMILY as REFER
from mgpt.evaluation.metrics.reg import FAMILY as IDENTIFY
from mgpt.evaluation.metrics.vqa import FAMILY as VQA
from mgpt.evaluation.scoring import Family, Judgement, Reply, Score, chance_levels, score_family
from mgpt.inference.types import Answer, AnswerAll, Ask, ModelSource, Request


@dataclass(frozen=True)
class Prediction:
    """One checkpoint's answer to one item; `answer` None where none came back."""

    checkpoint: str
    item: Item
    answer: Answer | None
    judgement: Judgement


@dataclass(frozen=True)
class Evaluation:
    """`scores`: checkpoint -> metric -> score, checkpoints in the order of training. `predictions`: all of them, in the order of the
    items.
    """

    model_name: str
    scores: dict[str, dict[str, Score]]
    predictions: list[Prediction]

    @property
    def missing(self) -> int:
        """Answers that never came back."""
        return sum(prediction.answer is None for prediction in self.predictions)


def families(vocabulary: Vocabulary) -> dict[str, Family]:
    """The metric families by task."""
    return {
        "refer": REFER,
        "identify": IDENTIFY,
        "vqa": VQA,
        "caption": caption_family(vocabulary),
        "grounding": grounding_family(vocabulary),
        "describe": description_family(vocabulary),
    }


def run_suite(
    model_name: str,
    settings: ModelEvaluationSettings,
    samples: Sequence[Sample],
    backbones: Mapping[str, str | Path],
    checkpoints: Mapping[str, Path],
    *,
    answer_all: AnswerAll,
    tasks: Mapping[str, Task] | None = None,
) -> Evaluation:
    """Ask and score. `checkpoints`: name -> folder of trained weights, in the order of training; `untrained` needs none.

    Raises ValueError when a task has no held-out items or a checkpoint has no weights.
    """
    items = choose_items(settings, samples, tasks)
    source = ModelSource.of(backbones, checkpoints, settings.format, settings.generation, settings.seed)
    asked = [
        (item, _ask(settings, item, position)) for members in items.values() for position, item in enumerate(members)
    ]
    answers = answer_all(source, [ask for _, ask in asked])
    return score_answers(
        model_name, settings, items, {item.id: found for (item, _), found in zip(asked, answers, strict=True)}
    )


def choose_items(
    settings: ModelEvaluationSettings, samples: Sequence[Sample], tasks: Mapping[str, Task] | None = None
) -> dict[str, list[Item]]:
    """Task -> its items. Raises ValueError that names every task without items."""
    vocabulary = load_vocabulary(settings.vocabulary)
    items = {
        name: build_items(samples, name, vocabulary, ItemRules(ask.examples, settings.seed, settings.size_limits, tasks))
        for name, ask in settings.tasks.items()
    }
    empty = [name for name, found in items.items() if not found]
    if empty:
        have = ", ".join(sorted({sample.task for sample in samples})) or "none"
        raise ValueError(
            f"evaluate.tasks: no held-out items of {', '.join(empty)} in splits {', '.join(settings.splits)}; the curated tasks there are: "
            f"{have}"
        )
    return items


def _ask(settings: ModelEvaluationSettings, item: Item, position: int) -> Ask:
    asked = settings.tasks[item.task]
    early = settings.checkpoints if position < asked.early_examples else settings.checkpoints[-1:]
    choices = item.choices if item.dataset in settings.ranked_datasets else ()
    return Ask(Request((item.image,), item.messages), tuple(early), asked.max_new_tokens, choices=choices)


def score_answers(
    model_name: str,
    settings: ModelEvaluationSettings,
    items: Mapping[str, Sequence[Item]],
    answers: Mapping[str, Mapping[str, Answer]],
) -> Evaluation:
    """`answers`: item id -> checkpoint -> answer; a checkpoint that was asked and is not there counts as missing."""
    known = families(load_vocabulary(settings.vocabulary))
    scores: dict[str, dict[str, Score]] = {name: {} for name in settings.checkpoints}
    predictions: list[Prediction] = []
    for position, checkpoint in enumerate(settings.checkpoints):
        for task, members in items.items():
            is_last = position == len(settings.checkpoints) - 1
            asked = members if is_last else members[: settings.tasks[task].early_examples]
            given = [answers.get(item.id, {}).get(checkpoint) for item in asked]
            replies = [None if found is None else Reply(found.text, found.finished) for found in given]
            chance = chance_levels(known[task], asked, replies, settings.seed)
            found_scores, judgements = score_family(
                known[task], asked, replies, chance=chance, resamples=settings.resamples, seed=settings.seed
            )
            scores[checkpoint].update(found_scores)
            predictions += [Prediction(checkpoint, *row) for row in zip(asked, given, judgements, strict=True)]
    return Evaluation(model_name, scores, predictions)
