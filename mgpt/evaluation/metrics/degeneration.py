"""Degeneration metrics of long descriptions; `mgpt.inference.degeneration` defines the kinds."""

from __future__ import annotations

from mgpt.evaluation.types import Contribution
from mgpt.inference.degeneration import degeneration_kinds

KINDS = ("empty", "repetition", "unfinished")


def contributions(task: str, text: str, finished: bool) -> dict[str, Contribution]:
    """Returns `<task>_degeneration_rate` and one metric a kind for one description; 1 where it degenerates."""
    found = degeneration_kinds(text, finished)
    kinds = {f"{task}_{kind}": Contribution(float(kind in found)) for kind in KINDS}
    return {f"{task}_degeneration_rate": Contribution(float(bool(found))), **kinds}
