"""Evaluation of several checkpoints of one model on the same held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.data.tasks import Task
from mgpt.data.types import Sample
from mgpt.data.vocabulary import Vocabulary, load_vocabulary
from mgpt.evaluation.examples import ExampleOptions, build_examples
from mgpt.evaluation.metrics import rec, reg, vqa
from mgpt.evaluation.metrics.captioning import captioning_family, description_family
from mgpt.evaluation.metrics.grounded_captioning import grounded_captioning_family
from mgpt.evaluation.scoring import chance_levels, score_examples
from mgpt.evaluation.types import Evaluation, Example, MetricFamily, Prediction, Score
from mgpt.inference.types import CheckpointRequest, GenerationBackend, GenerationOutput, GenerationRequest, ModelSource


def metric_families(vocabulary: Vocabulary) -> dict[str, MetricFamily]:
    """Returns the metric family of each evaluation task."""
    return {
        "rec": rec.FAMILY,
        "reg": reg.FAMILY,
        "vqa": vqa.FAMILY,
        "captioning": captioning_family(vocabulary),
        "grounded_captioning": grounded_captioning_family(vocabulary),
        "description": description_family(vocabulary),
    }


def evaluate_checkpoints(
    model_name: str,
    settings: ModelEvaluationSettings,
    samples: Sequence[Sample],
    backbones: Mapping[str, str | Path],
    checkpoints: Mapping[str, Path],
    *,
    answer_all: GenerationBackend,
    tasks: Mapping[str, Task] | None = None,
) -> Evaluation:
    """Generates and scores the answers of every checkpoint.

    Args:
        samples: held-out samples of every task.
        backbones: name -> folder or URI.
        checkpoints: name -> folder of trained weights, in the order of training; `untrained` needs none.
        answer_all: generation backend.
        tasks: data tasks by name; None for the shipped ones.

    Raises:
        ValueError: a task has no held-out examples, or a checkpoint has no weights.
    """
    examples = select_examples(settings, samples, tasks)
    source = ModelSource.of(backbones, checkpoints, settings.format, settings.generation, settings.seed)
    flat = [(example, position) for members in examples.values() for position, example in enumerate(members)]
    answers = answer_all(source, [_request(settings, example, position) for example, position in flat])
    by_id = {example.id: found for (example, _), found in zip(flat, answers, strict=True)}
    return score_answers(model_name, settings, examples, by_id)


def select_examples(
    settings: ModelEvaluationSettings, samples: Sequence[Sample], tasks: Mapping[str, Task] | None = None
) -> dict[str, list[Example]]:
    """Builds the examples of each task of the settings.

    Raises:
        ValueError: tasks have no examples; names every one.
    """
    vocabulary = load_vocabulary(settings.vocabulary)
    examples = {}
    for name, task in settings.tasks.items():
        options = ExampleOptions(task.examples, settings.seed, settings.size_limits, tasks)
        examples[name] = build_examples(samples, name, vocabulary, options)
    empty = [name for name, found in examples.items() if not found]
    if empty:
        curated = ", ".join(sorted({sample.task for sample in samples})) or "none"
        raise ValueError(
            f"evaluate.tasks: no held-out examples of {', '.join(empty)} in splits {', '.join(settings.splits)}; "
            f"remove the tasks, or add datasets that have them (curated tasks: {curated})"
        )
    return examples


def _request(settings: ModelEvaluationSettings, example: Example, position: int) -> CheckpointRequest:
    task = settings.tasks[example.task]
    checkpoints = settings.checkpoints if position < task.early_examples else settings.checkpoints[-1:]
    choices = example.choices if example.dataset in settings.ranked_datasets else ()
    request = GenerationRequest((example.image,), example.messages)
    return CheckpointRequest(request, tuple(checkpoints), task.max_new_tokens, choices=choices)


def score_answers(
    model_name: str,
    settings: ModelEvaluationSettings,
    examples: Mapping[str, Sequence[Example]],
    answers: Mapping[str, Mapping[str, GenerationOutput]],
) -> Evaluation:
    """Scores given answers.

    Args:
        examples: task -> its examples.
        answers: example id -> checkpoint -> answer; a requested answer that is absent counts as missing.
    """
    families = metric_families(load_vocabulary(settings.vocabulary))
    scores: dict[str, dict[str, Score]] = {name: {} for name in settings.checkpoints}
    predictions: list[Prediction] = []
    for checkpoint in settings.checkpoints:
        is_last = checkpoint == settings.checkpoints[-1]
        for task, members in examples.items():
            chosen = members if is_last else members[: settings.tasks[task].early_examples]
            given = [answers.get(example.id, {}).get(checkpoint) for example in chosen]
            chance = chance_levels(families[task], chosen, given, settings.seed)
            task_scores, example_scores = score_examples(
                families[task], chosen, given, chance=chance, resamples=settings.resamples, seed=settings.seed
            )
            scores[checkpoint].update(task_scores)
            predictions += [Prediction(checkpoint, *row) for row in zip(chosen, given, example_scores, strict=True)]
    return Evaluation(model_name, scores, predictions)
