"""Rows of a training stage's summary: speed, mixture and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it would import Ray before the stage is connected
    from mgpt.execution.train import TrainResult


def summary_rows(result: TrainResult, shares: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    """Returns the rows of a finished training; `shares` are declared and realised shares and samples by dataset."""
    return {
        "steps": result.steps,
        "began at step": result.resumed_from,
        "weights sha256": result.sha256,
        **speed(result),
        "loss": f"{result.curve[0]['loss']:.3f} -> {result.curve[-1]['loss']:.3f}",
        "mixture": mixture_table(shares),
        "checkpoints": checkpoint_stalls(result.stalls),
    }


def mixture_table(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Formats each dataset's declared and realised share of the samples, one line per dataset."""
    width = max(map(len, shares))
    lines = []
    for name, one in shares.items():
        parts = f"declared {one['declared']:6.2%}  realised {one['realised']:6.2%}  {one['samples']:>7} samples"
        lines.append(f"{name:<{width}}  {parts}")
    return "\n".join(lines)


def checkpoint_stalls(stalls: Sequence[float]) -> str:
    """Returns the number of checkpoints since the workers last started, and for how long they blocked training."""
    if not stalls:
        return "none"
    mean, longest = sum(stalls) / len(stalls) * 1e3, max(stalls) * 1e3
    return f"{len(stalls)}, each blocked training for {mean:.0f} ms (longest {longest:.0f} ms)"


def speed(result: TrainResult) -> dict[str, object]:
    """Returns the rows of speed: time of a step, waiting for data, and the effect of the feature cache."""
    rows_here = [row for row in result.curve if row["step"] > result.resumed_from]
    if not rows_here:
        return {}
    each = step_seconds(result.curve, result.resumed_from) / (rows_here[-1]["step"] - result.resumed_from)
    waited = sum(row["data_wait"] * row["step_seconds"] for row in rows_here)
    share = waited / sum(row["step_seconds"] for row in rows_here)
    rows: dict[str, object] = {"step": f"{each:.3f} s", "data wait": f"{share:.1%} of step time"}
    return rows if result.cached is None else rows | {"feature cache": result.cached.effect(each, result.steps)}


def step_seconds(curve: Sequence[Mapping[str, float]], resumed_from: int) -> float:
    """Returns the seconds of this run's training steps, without starting workers, importing and waiting for data."""
    worked, before = 0.0, float(resumed_from)
    for row in curve:
        if row["step"] > resumed_from:
            worked += (row["step"] - before) * row["step_seconds"] * (1 - row["data_wait"])
            before = row["step"]
    return worked
