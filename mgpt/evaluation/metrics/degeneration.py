"""Metrics of degenerate descriptions: `mgpt.inference.degeneration` defines what degenerates."""

from __future__ import annotations

from mgpt.evaluation.examples import Item
from mgpt.evaluation.scoring import Judgement, Part
from mgpt.inference.degeneration import degeneration_kinds


def parts(item: Item, text: str, finished: bool) -> Judgement:
    """The failure metrics of one description; 1 is a failure."""
    kinds = degeneration_kinds(text, finished)
    shares = {f"{item.task}_{kind}": Part(float(kind in kinds)) for kind in ("empty", "repetition", "unfinished")}
    return Judgement({f"{item.task}_failure_rate": Part(float(bool(kinds))), **shares})
