"""Whether a candidate may become champion: limits, comparison with the champion, nothing missing. Pure: scores in, checks out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.config.registry import GateSettings


@dataclass(frozen=True)
class Score:
    """One metric as the gate needs it; `low` and `high` bound its 95 % interval, `missing` counts items without an answer."""

    value: float
    low: float
    high: float
    n: int
    missing: int
    higher_is_better: bool


@dataclass(frozen=True)
class Check:
    """One rule, whether the candidate keeps it, and the sentence that says why."""

    name: str
    holds: bool
    reason: str


Scores = Mapping[str, Score]


def parse_scores(content: Mapping[str, Any]) -> dict[str, Score]:
    """The metrics of an evaluated model: every entry that has a value and an interval.

    Raises:
        ValueError: none has, or an entry lacks a field.
    """
    wanted = Score.__dataclass_fields__
    found: dict[str, Score] = {}
    for name, entry in content.items():
        if not isinstance(entry, Mapping) or "value" not in entry:
            continue
        lacking = sorted(set(wanted) - set(entry))
        if lacking:
            raise ValueError(
                f"metric {name!r} lacks {', '.join(lacking)}; promote needs the metrics.json that the evaluate stage writes"
            )
        found[name] = Score(**{key: entry[key] for key in wanted})
    if not found:
        raise ValueError(
            "no metric with a value in the metrics; promote needs the metrics.json that the evaluate stage writes"
        )
    return found


def read_scores(path: Path, checkpoint: str) -> dict[str, Score]:
    """The scores of one checkpoint in the evaluate stage's `metrics.json`: `{"scores": {checkpoint: {metric: {...}}}}`.

    Raises:
        ValueError: the file is missing, is not such a file, or has not this checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such metrics file; run the evaluate stage first")
    try:
        by_checkpoint = json.loads(path.read_text(encoding="utf-8"))["scores"]
        if checkpoint not in by_checkpoint:
            raise ValueError(
                f"no scores of {checkpoint!r}, only of {', '.join(by_checkpoint)}; name it in evaluate's checkpoints"
            )
        return parse_scores(by_checkpoint[checkpoint])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error if isinstance(error, ValueError) else repr(error)}") from error


def judge(candidate: Scores, champion: Scores | None, gates: GateSettings) -> list[Check]:
    """Every check of a candidate's scores. `champion` is None where there is none yet, or where it may not be compared."""
    checks = [*_limits(candidate, gates), _nothing_missing(candidate)]
    if champion is not None:
        checks += [
            _comparison(name, candidate.get(name), champion.get(name)) for name in gates.compare or sorted(champion)
        ]
    return checks


def _limits(candidate: Scores, gates: GateSettings) -> list[Check]:
    rules = [(name, limit, True) for name, limit in gates.floors.items()] + [
        (name, limit, False) for name, limit in gates.ceilings.items()
    ]
    return [_limit(name, candidate.get(name), limit, is_floor) for name, limit, is_floor in sorted(rules)]


def _limit(name: str, score: Score | None, limit: float, is_floor: bool) -> Check:
    kind = "floor" if is_floor else "ceiling"
    label = f"{kind} {name}"
    if score is None:
        return Check(
            label,
            False,
            f"{name} was not measured, so it cannot keep {limit:g}; evaluate it, or correct promote's {kind}s",
        )
    if score.higher_is_better != is_floor:
        better, other = ("higher", "floors") if score.higher_is_better else ("lower", "ceilings")
        return Check(label, False, f"{name} is better when {better}, so it cannot have a {kind}; name it under {other}")
    holds = score.value >= limit if is_floor else score.value <= limit
    sign = ">=" if is_floor else "<="
    return Check(label, holds, f"{name} {score.value:.4g} {'is' if holds else 'is not'} {sign} {limit:g}")


def _nothing_missing(candidate: Scores) -> Check:
    gaps = [f"{name}: {score.missing} of {score.n}" for name, score in sorted(candidate.items()) if score.missing]
    reason = f"items without an answer: {'; '.join(gaps)}" if gaps else "every item of every task was answered"
    return Check("no missing answers", not gaps, reason)


def _comparison(name: str, score: Score | None, champion: Score | None) -> Check:
    """Worse only when the candidate's value lies outside the champion's interval, on the bad side."""
    label = f"champion {name}"
    if score is None:
        return Check(
            label, False, f"{name} was not measured for the candidate; evaluate it too, or correct promote's compare"
        )
    if champion is None:
        return Check(label, True, f"{name} {score.value:.4g}; it was not measured for the champion")
    bound = champion.low if champion.higher_is_better else champion.high
    holds = score.value >= bound if champion.higher_is_better else score.value <= bound
    interval = f"champion {champion.value:.4g} ({champion.low:.4g} to {champion.high:.4g})"
    return Check(
        label,
        holds,
        f"{name} {score.value:.4g} against {interval}: {'not worse' if holds else 'worse'} beyond its interval",
    )
