"""The report of the `describe` stage: counts by reason, how far texts were changed, failures before and after, and examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mgpt.inference.degeneration import degeneration_kinds
from mgpt.inference.types import GenerationOutput
from mgpt.storage import write_atomic

EXAMPLES = 5
Row = tuple[GenerationOutput, str, float, str]  # generated, mended, change, reason for dropping


def write_describe_report(counts: Mapping[str, int], rows: Sequence[Row], out: Path) -> None:
    """Write `metrics.json` and `report.md`."""
    out.mkdir(parents=True, exist_ok=True)
    figures = measure(counts, rows)
    write_atomic(out / "metrics.json", (json.dumps(figures, indent=1, sort_keys=True) + "\n").encode())
    write_atomic(out / "report.md", _markdown(figures, rows).encode())


def measure(counts: Mapping[str, int], rows: Sequence[Row]) -> dict[str, object]:
    """Counts, failure rates of the generated and of the kept texts, and quantiles of the change of the kept."""
    kept = [(mended, change) for _, mended, change, reason in rows if not reason]
    changes = [change for _, change in kept] or [0.0]
    before = [bool(degeneration_kinds(generated.text, generated.finished)) for generated, *_ in rows]
    after = [bool(degeneration_kinds(mended, True)) for mended, _ in kept]
    return {
        "counts": dict(counts),
        "failure_rate_generated": float(np.mean(before)) if before else 0.0,
        "failure_rate_kept": float(np.mean(after)) if after else 0.0,
        "change_mean": float(np.mean(changes)),
        "change_median": float(np.median(changes)),
        "change_90th": float(np.quantile(changes, 0.9)),
    }


def _markdown(figures: Mapping[str, object], rows: Sequence[Row]) -> str:
    counts = figures["counts"]
    assert isinstance(counts, dict)
    lines = [
        "# Descriptions",
        "",
        "| what | count |",
        "| --- | --- |",
        *(f"| {name} | {number} |" for name, number in counts.items()),
        "",
    ]
    lines += [
        "| measure | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.3f} |" for name, value in figures.items() if isinstance(value, float)),
        "",
    ]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[3], []).append(row)
    for reason, members in sorted(groups.items()):
        lines += [f"## {'Dropped: ' + reason if reason else 'Kept, most changed first'}", ""]
        for generated, mended, change, _ in sorted(members, key=lambda row: -row[2])[:EXAMPLES]:
            lines += [
                f"- generated: `{_inline(generated.text)}`",
                f"  mended ({change:.0%} changed): `{_inline(mended)}`",
            ]
        lines.append("")
    return "\n".join(lines)


def _inline(text: str) -> str:
    return " ".join(text.replace("`", "'").split())[:600]
