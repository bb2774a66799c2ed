"""Judging: what checkpoints answer to held-out questions, and what their answers are worth."""

from mgpt.evaluation.run import EvaluateRequest, evaluate, read_samples

__all__ = ["EvaluateRequest", "evaluate", "read_samples"]
