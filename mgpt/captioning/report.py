"""The report of the `describe` stage: counts by reject reason, change, degeneration and examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mgpt.captioning.types import Description
from mgpt.inference.degeneration import degeneration_kinds
from mgpt.storage import write_atomic

MAX_EXAMPLES = 5  # a reject reason
MAX_CHARACTERS = 600  # of an example


def write_describe_report(counts: Mapping[str, int], descriptions: Sequence[Description], out: Path) -> None:
    """Writes `metrics.json` and `report.md` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    metrics = measure(descriptions)
    content = json.dumps({"counts": dict(counts), **metrics}, indent=1, sort_keys=True)
    write_atomic(out / "metrics.json", (content + "\n").encode())
    write_atomic(out / "report.md", _markdown(counts, metrics, descriptions).encode())


def measure(descriptions: Sequence[Description]) -> dict[str, float]:
    """Computes failure rates of generated and of kept texts, and mean and quantiles of the change of kept ones."""
    kept = [one for one in descriptions if one.kept]
    changes = [one.change for one in kept] or [0.0]
    before = [bool(degeneration_kinds(one.answer.text, one.answer.finished)) for one in descriptions]
    after = [bool(degeneration_kinds(one.repaired.text, True)) for one in kept]
    return {
        "failure_rate_generated": float(np.mean(before)) if before else 0.0,
        "failure_rate_kept": float(np.mean(after)) if after else 0.0,
        "change_mean": float(np.mean(changes)),
        "change_median": float(np.median(changes)),
        "change_90th": float(np.quantile(changes, 0.9)),
    }


def _markdown(counts: Mapping[str, int], metrics: Mapping[str, float], descriptions: Sequence[Description]) -> str:
    lines = ["# Descriptions", "", "| count | value |", "| --- | --- |"]
    lines += [f"| {name} | {number} |" for name, number in counts.items()]
    lines += ["", "| measure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in metrics.items()]
    lines += [""]
    groups: dict[str, list[Description]] = {}
    for one in descriptions:
        groups.setdefault(one.reject_reason, []).append(one)
    for reason, members in sorted(groups.items()):
        lines += [f"## {'Dropped: ' + reason if reason else 'Kept, most changed first'}", ""]
        for one in sorted(members, key=lambda one: -one.change)[:MAX_EXAMPLES]:
            lines.append(f"- generated: `{_inline(one.answer.text)}`")
            lines.append(f"  repaired ({one.change:.0%} changed): `{_inline(one.repaired.text)}`")
        lines.append("")
    return "\n".join(lines)


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())[:MAX_CHARACTERS]
