"""Evaluation: answers of checkpoints to held-out questions, and their scores.

Names are imported on first use, so that importing a metric does not load the readers of curated data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgpt.evaluation.stage import EvaluateRequest, evaluate, read_samples

__all__ = ["EvaluateRequest", "evaluate", "read_samples"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mgpt.evaluation import stage

    return getattr(stage, name)
