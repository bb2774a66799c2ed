"""The promotion policy: compares a candidate's scores with limits and with the champion. Pure functions from scores to
checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.config.registry import GateSettings
from mgpt.registry.types import Check


@dataclass(frozen=True)
class Score:
    """One metric. `low` and `high` bound its 95 % interval over `n` examples; `missing` counts examples without an
    answer."""

    value: float
    low: float
    high: float
    n: int
    missing: int
    higher_is_better: bool


Scores = Mapping[str, Score]


def parse_scores(content: Mapping[str, Any]) -> dict[str, Score]:
    """Returns the metrics of an evaluated checkpoint: every entry that has a value.

    Raises:
        ValueError: no entry has a value, or one lacks another field.
    """
    fields = Score.__dataclass_fields__
    scores: dict[str, Score] = {}
    for name, entry in content.items():
        if not isinstance(entry, Mapping) or "value" not in entry:
            continue
        missing = sorted(set(fields) - set(entry))
        if missing:
            raise ValueError(f"metric {name!r} lacks {', '.join(missing)}; give the metrics.json of the evaluate stage")
        scores[name] = Score(**{key: entry[key] for key in fields})
    if not scores:
        raise ValueError("no metric has a value; give the metrics.json of the evaluate stage")
    return scores


def read_scores(path: Path, checkpoint: str) -> dict[str, Score]:
    """Reads one checkpoint's scores from the evaluate stage's `metrics.json`: `{"scores": {checkpoint: {metric:
    {...}}}}`.

    Raises:
        ValueError: the file is missing or of another form, or does not contain the checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such metrics file; run the evaluate stage first")
    try:
        by_checkpoint = json.loads(path.read_text(encoding="utf-8"))["scores"]
        if checkpoint not in by_checkpoint:
            known = ", ".join(by_checkpoint)
            raise ValueError(f"no scores of {checkpoint!r}, only of {known}; add it to the checkpoints of evaluate")
        return parse_scores(by_checkpoint[checkpoint])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error if isinstance(error, ValueError) else repr(error)}") from error


def check_scores(candidate: Scores, champion: Scores | None, policy: GateSettings) -> list[Check]:
    """Returns every check of a candidate's scores. `champion` is None where there is none to compare with."""
    limits = [(name, limit, True) for name, limit in policy.floors.items()]
    limits += [(name, limit, False) for name, limit in policy.ceilings.items()]
    checks = [_limit_check(name, candidate.get(name), limit, is_floor) for name, limit, is_floor in sorted(limits)]
    checks.append(_missing_answers_check(candidate))
    if champion is not None:
        compared = policy.compare or sorted(champion)
        checks += [_champion_check(name, candidate.get(name), champion.get(name)) for name in compared]
    return checks


def _limit_check(name: str, score: Score | None, limit: float, is_floor: bool) -> Check:
    kind = "floor" if is_floor else "ceiling"
    label = f"{kind} {name}"
    if score is None:
        reason = f"{name} was not measured (limit {limit:g}); evaluate it, or remove it from promote's {kind}s"
        return Check(label, False, reason)
    if score.higher_is_better != is_floor:
        better, other = ("higher", "floors") if score.higher_is_better else ("lower", "ceilings")
        reason = f"{name} is better when {better}, so a {kind} makes no sense; move it to {other}"
        return Check(label, False, reason)
    passed = score.value >= limit if is_floor else score.value <= limit
    sign = ">=" if is_floor else "<="
    return Check(label, passed, f"{name} {score.value:.4g} {'is' if passed else 'is not'} {sign} {limit:g}")


def _missing_answers_check(candidate: Scores) -> Check:
    gaps = [f"{name}: {score.missing} of {score.n}" for name, score in sorted(candidate.items()) if score.missing]
    reason = f"examples without an answer: {'; '.join(gaps)}" if gaps else "every example of every task has an answer"
    return Check("no missing answers", not gaps, reason)


def _champion_check(name: str, score: Score | None, champion: Score | None) -> Check:
    """Fails only when the candidate's value lies outside the champion's interval on the worse side."""
    label = f"champion {name}"
    if score is None:
        reason = f"{name} was not measured for the candidate; evaluate it, or remove it from promote's compare"
        return Check(label, False, reason)
    if champion is None:
        return Check(label, True, f"{name} {score.value:.4g}; not measured for the champion")
    bound = champion.low if champion.higher_is_better else champion.high
    passed = score.value >= bound if champion.higher_is_better else score.value <= bound
    interval = f"champion {champion.value:.4g} ({champion.low:.4g} to {champion.high:.4g})"
    verdict = "not worse" if passed else "worse"
    return Check(label, passed, f"{name} {score.value:.4g}, {interval}: {verdict} beyond the champion's interval")
