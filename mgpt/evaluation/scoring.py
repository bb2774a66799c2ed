"""From judged answers to scores: values, bootstrap intervals, chance levels, slices, and what was missing or unreadable.

A metric is a ratio of sums over items: `sum(numerator) / sum(denominator)`. Accuracy has denominator 1 an item; object recall has the
number of true objects. Intervals resample items, so items with many objects weigh as they do in the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from mgpt.evaluation.examples import Item

PERMUTATIONS = 5  # answers are dealt to other items this many times for the chance level
DRAWN_AT_ONCE = 1_000_000  # items of resamples that are in memory together
CONSTANTS = 64  # at most this many constant answers are tried for the chance level


@dataclass(frozen=True)
class Part:
    """One item's share of a metric; `denominator` 0 leaves the item out of it."""

    numerator: float
    denominator: float = 1.0


@dataclass(frozen=True)
class Judgement:
    """What one answer is worth. `parsed` is False when the answer has not the form that its task asks for (it then scores as wrong)."""

    parts: dict[str, Part]
    parsed: bool = True


@dataclass(frozen=True)
class Metric:
    """`headline` metrics stand in the table; the others in the metrics file only. A `descriptive` one has no better or worse (the length "
    "of texts)."""

    name: str
    higher_is_better: bool = True
    headline: bool = False
    has_chance: bool = True
    descriptive: bool = False

    @property
    def worst(self) -> float:
        """The value where nothing counts (no object named at all): silence is never a good score."""
        return 0.0 if self.higher_is_better else 1.0


Judge = Callable[[Item, str, bool], Judgement]  # item, the answer's text, whether generation ended by itself


@dataclass(frozen=True)
class Family:
    """The metrics of one task. `constants(items)` proposes answers that need no image, for the chance level."""

    task: str
    metrics: tuple[Metric, ...]
    judge: Judge
    constants: Callable[[Sequence[Item]], list[str]] = field(default=lambda items: [])


@dataclass(frozen=True)
class Score:
    """One metric of one checkpoint. `low`, `high`: 95 % bootstrap interval. `chance`: see `chance_levels`. `n`: items asked; `missing`:
    items without an answer; `unparsed`: answers of the wrong form. Missing and unparsed items count as wrong, never as absent."""

    value: float
    low: float
    high: float
    chance: float | None
    n: int
    missing: int
    unparsed: int
    higher_is_better: bool
    headline: bool
    descriptive: bool = False
    slices: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Reply:
    """The text that a model gave for an item, and whether it ended by itself."""

    text: str
    finished: bool


def score_family(
    family: Family,
    items: Sequence[Item],
    replies: Sequence[Reply | None],
    *,
    chance: dict[str, float],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Score], list[Judgement]]:
    """Judge every item and sum up. `replies[i]` belongs to `items[i]`; None means that no answer came back.

    Raises ValueError when there are no items or the two lengths differ.
    """
    if not items:
        raise ValueError(
            f"evaluate: no held-out items of task '{family.task}'; curate a test split that has this task, or leave the task out of "
            f"evaluate.tasks"
        )
    if len(items) != len(replies):
        raise ValueError(
            f"evaluate: {len(replies)} answers for {len(items)} items of task '{family.task}'; every item needs one answer (or None for a "
            f"missing one)"
        )
    judgements = [judge_reply(family, item, reply) for item, reply in zip(items, replies, strict=True)]
    missing = sum(reply is None for reply in replies)
    unparsed = sum(
        not judgement.parsed for judgement, reply in zip(judgements, replies, strict=True) if reply is not None
    )
    scores = {}
    for metric in family.metrics:
        parts = [judgement.parts[metric.name] for judgement in judgements]
        low, high = bootstrap(parts, resamples, seed, metric.worst)
        scores[metric.name] = Score(
            value=ratio(parts, metric.worst),
            low=low,
            high=high,
            chance=chance.get(metric.name),
            n=len(items),
            missing=missing,
            unparsed=unparsed,
            higher_is_better=metric.higher_is_better,
            headline=metric.headline,
            descriptive=metric.descriptive,
            slices=_slices(items, parts, resamples, seed, metric.worst),
        )
    return scores, judgements


def judge_reply(family: Family, item: Item, reply: Reply | None) -> Judgement:
    """A missing answer is judged as an empty, unfinished one."""
    return family.judge(item, reply.text, reply.finished) if reply is not None else family.judge(item, "", False)


def ratio(parts: Sequence[Part], worst: float = 0.0) -> float:
    """Sum of numerators by sum of denominators; `worst` where nothing counts."""
    total = sum(part.denominator for part in parts)
    return sum(part.numerator for part in parts) / total if total else worst


def bootstrap(parts: Sequence[Part], resamples: int, seed: int, worst: float = 0.0) -> tuple[float, float]:
    """Percentile interval (2.5 %, 97.5 %) of the ratio over items drawn with replacement; the same seed gives the same interval."""
    values = np.array([(part.numerator, part.denominator) for part in parts], dtype=np.float64)
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(values))
    sums = []
    for done in range(0, resamples, at_once):
        drawn = rng.integers(len(values), size=(min(at_once, resamples - done), len(values)))
        sums.append([column[drawn].sum(axis=1) for column in values.T.copy()])
    right, counted = np.concatenate(sums, axis=1)
    ratios = np.divide(right, counted, out=np.full(resamples, worst), where=counted > 0)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def chance_levels(
    family: Family, items: Sequence[Item], replies: Sequence[Reply | None], seed: int
) -> dict[str, float]:
    """What each metric is worth without looking at the images: the better of two blind answerers.

    - *dealt*: the model's own answers, each dealt to another item (mean over `PERMUTATIONS` seeded shifts of a shuffle), which keeps the
      model's habits and frequencies;
    - *constant*: the best single answer for all items, picked on the test items themselves (so never too low). For metrics where lower is
      better, the constant is not used: saying nothing never hallucinates. Metrics without a blind answerer (failure kinds) have no chance.
    """
    dealt = _dealt(family, items, replies, seed)
    constant = _constant(family, items, seed)
    levels = {}
    for metric in family.metrics:
        if metric.has_chance:
            levels[metric.name] = (
                max(dealt[metric.name], constant.get(metric.name, 0.0))
                if metric.higher_is_better
                else dealt[metric.name]
            )
    return levels


def _dealt(family: Family, items: Sequence[Item], replies: Sequence[Reply | None], seed: int) -> dict[str, float]:
    order = np.random.default_rng(seed).permutation(len(items))
    rounds: dict[str, list[float]] = {metric.name: [] for metric in family.metrics}
    worst = {metric.name: metric.worst for metric in family.metrics}
    for shift in range(1, PERMUTATIONS + 1):
        givers = {int(order[i]): int(order[(i + shift) % len(order)]) for i in range(len(order))}
        judged = [judge_reply(family, item, replies[givers[i]]) for i, item in enumerate(items)]
        for name, values in rounds.items():
            values.append(ratio([judgement.parts[name] for judgement in judged], worst[name]))
    return {name: float(np.mean(values)) for name, values in rounds.items()}


def _constant(family: Family, items: Sequence[Item], seed: int) -> dict[str, float]:
    candidates = family.constants(items)
    if len(candidates) > CONSTANTS:
        picks = np.random.default_rng(seed).choice(len(candidates), CONSTANTS, replace=False)
        candidates = [candidates[i] for i in sorted(picks)]
    best: dict[str, float] = {}
    for candidate in candidates:
        judged = [family.judge(item, candidate, True) for item in items]
        for metric in family.metrics:
            best[metric.name] = max(
                best.get(metric.name, 0.0), ratio([judgement.parts[metric.name] for judgement in judged])
            )
    return best


def _slices(
    items: Sequence[Item], parts: Sequence[Part], resamples: int, seed: int, worst: float
) -> dict[str, dict[str, dict[str, float]]]:
    """`{"objects": {"2": {"value", "low", "high", "n"}}, "size": {...}}`."""
    groups: dict[str, dict[str, list[Part]]] = {}
    for item, part in zip(items, parts, strict=True):
        for name, value in item.slices:
            groups.setdefault(name, {}).setdefault(value, []).append(part)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in sorted(groups.items()):
        for value, members in sorted(values.items()):
            low, high = bootstrap(members, resamples, seed, worst)
            found.setdefault(name, {})[value] = {
                "value": ratio(members, worst),
                "low": low,
                "high": high,
                "n": len(members),
            }
    return found
