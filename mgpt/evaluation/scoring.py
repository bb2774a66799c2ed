"""Scores of one task's answers: values, bootstrap intervals, chance levels, slices, missing and unparsed answers.

A metric is a ratio of sums over examples: `sum(numerator) / sum(denominator)`. Accuracy has denominator 1 an example;
object recall has the number of true objects. Intervals resample examples, so examples with many objects weigh as they
do in the value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mgpt.evaluation.types import Contribution, Example, ExampleScore, MetricFamily, Score
from mgpt.inference.types import GenerationOutput

PERMUTATIONS = 5  # times that the answers are shuffled among the examples, for the chance level
MAX_DRAWN = 1_000_000  # examples of bootstrap resamples held in memory at once
MAX_CONSTANTS = 64  # constant answers tried for the chance level


def score_examples(
    family: MetricFamily,
    examples: Sequence[Example],
    answers: Sequence[GenerationOutput | None],
    *,
    chance: dict[str, float],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Score], list[ExampleScore]]:
    """Scores the answers to one task's examples.

    Args:
        answers: `answers[i]` belongs to `examples[i]`; None where no answer came back.
        chance: metric -> chance level, see `chance_levels`.
        resamples: number of bootstrap resamples.

    Returns:
        Metric -> score, and the score of each example.

    Raises:
        ValueError: there are no examples, or the two lengths differ.
    """
    if not examples:
        raise ValueError(
            f"evaluate: task '{family.task}' has no held-out examples; curate a test split with this task, or "
            f"remove it from evaluate.tasks"
        )
    if len(examples) != len(answers):
        raise ValueError(
            f"evaluate: {len(answers)} answers for {len(examples)} examples of task '{family.task}'; give one answer "
            f"for each example, None for a missing one"
        )
    example_scores = [score_answer(family, *pair) for pair in zip(examples, answers, strict=True)]
    given = [one for one, answer in zip(example_scores, answers, strict=True) if answer is not None]
    scores = {}
    for metric in family.metrics:
        contributions = [one.contributions[metric.name] for one in example_scores]
        low, high = bootstrap(contributions, resamples, seed, metric.worst)
        scores[metric.name] = Score(
            value=ratio(contributions, metric.worst),
            low=low,
            high=high,
            chance=chance.get(metric.name),
            n=len(examples),
            missing=len(examples) - len(given),
            unparsed=sum(not one.parsed for one in given),
            higher_is_better=metric.higher_is_better,
            headline=metric.headline,
            descriptive=metric.descriptive,
            slices=_slices(examples, contributions, resamples, seed, metric.worst),
        )
    return scores, example_scores


def score_answer(family: MetricFamily, example: Example, answer: GenerationOutput | None) -> ExampleScore:
    """Scores one answer; a missing one as an empty, unfinished text."""
    text, finished = ("", False) if answer is None else (answer.text, answer.finished)
    return family.score(example, text, finished)


def ratio(contributions: Sequence[Contribution], worst: float = 0.0) -> float:
    """Computes the sum of numerators over the sum of denominators; `worst` where that is 0."""
    total = sum(one.denominator for one in contributions)
    return sum(one.numerator for one in contributions) / total if total else worst


def bootstrap(
    contributions: Sequence[Contribution], resamples: int, seed: int, worst: float = 0.0
) -> tuple[float, float]:
    """Computes the 2.5 % and 97.5 % percentiles of the ratio over examples drawn with replacement.

    The same seed gives the same interval.
    """
    values = np.array([(one.numerator, one.denominator) for one in contributions], dtype=np.float64)
    rng = np.random.default_rng(seed)
    at_once = max(1, MAX_DRAWN // len(values))
    sums = []
    for done in range(0, resamples, at_once):
        drawn = rng.integers(len(values), size=(min(at_once, resamples - done), len(values)))
        sums.append([column[drawn].sum(axis=1) for column in values.T.copy()])
    numerators, denominators = np.concatenate(sums, axis=1)
    ratios = np.divide(numerators, denominators, out=np.full(resamples, worst), where=denominators > 0)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def chance_levels(
    family: MetricFamily, examples: Sequence[Example], answers: Sequence[GenerationOutput | None], seed: int
) -> dict[str, float]:
    """Computes the value of each metric that needs no image: the better of two sets of blind answers.

    - *shuffled*: the model's own answers, each given to another example (mean over `PERMUTATIONS` shifts of a seeded
      shuffle), which keeps the model's habits and frequencies;
    - *constant*: the best single answer for all examples, chosen on the test examples themselves, so that it is never
      too low. It is not used for metrics where lower is better: an empty answer never hallucinates.

    Metrics without blind answers (kinds of degeneration) have no chance level.
    """
    shuffled = _shuffled_answers(family, examples, answers, seed)
    constant = _best_constant(family, examples, seed)
    levels = {}
    for metric in (metric for metric in family.metrics if metric.has_chance):
        levels[metric.name] = shuffled[metric.name]
        if metric.higher_is_better:
            levels[metric.name] = max(shuffled[metric.name], constant.get(metric.name, 0.0))
    return levels


def _shuffled_answers(
    family: MetricFamily, examples: Sequence[Example], answers: Sequence[GenerationOutput | None], seed: int
) -> dict[str, float]:
    order = np.random.default_rng(seed).permutation(len(examples))
    values: dict[str, list[float]] = {metric.name: [] for metric in family.metrics}
    for shift in range(1, PERMUTATIONS + 1):
        donors = {int(order[i]): int(order[(i + shift) % len(order)]) for i in range(len(order))}
        scored = [score_answer(family, example, answers[donors[i]]) for i, example in enumerate(examples)]
        for metric in family.metrics:
            values[metric.name].append(ratio([one.contributions[metric.name] for one in scored], metric.worst))
    return {name: float(np.mean(found)) for name, found in values.items()}


def _best_constant(family: MetricFamily, examples: Sequence[Example], seed: int) -> dict[str, float]:
    candidates = family.constants(examples)
    if len(candidates) > MAX_CONSTANTS:
        picks = np.random.default_rng(seed).choice(len(candidates), MAX_CONSTANTS, replace=False)
        candidates = [candidates[i] for i in sorted(picks)]
    best: dict[str, float] = {}
    for candidate in candidates:
        scored = [family.score(example, candidate, True) for example in examples]
        for metric in family.metrics:
            value = ratio([one.contributions[metric.name] for one in scored])
            best[metric.name] = max(best.get(metric.name, 0.0), value)
    return best


def _slices(
    examples: Sequence[Example], contributions: Sequence[Contribution], resamples: int, seed: int, worst: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns `{"objects": {"2": {"value", "low", "high", "n"}}, "size": {...}}`."""
    groups: dict[str, dict[str, list[Contribution]]] = {}
    for example, contribution in zip(examples, contributions, strict=True):
        for name, value in example.slices:
            groups.setdefault(name, {}).setdefault(value, []).append(contribution)
    slices: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in sorted(groups.items()):
        for value, members in sorted(values.items()):
            low, high = bootstrap(members, resamples, seed, worst)
            numbers = {"value": ratio(members, worst), "low": low, "high": high, "n": len(members)}
            slices.setdefault(name, {})[value] = numbers
    return slices
