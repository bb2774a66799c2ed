"""Metrics by evaluation task. Names only: importing this package imports no metric."""

from __future__ import annotations

_OBJECTS = ("object_recall", "hallucinated_objects", "with_hallucination", "words")
_NAMES = {
    "refer": ("accuracy", "accuracy_original", "mean_overlap"),
    "identify": ("exact", "word_overlap"),
    "vqa": ("accuracy", "exact"),
    "caption": _OBJECTS,
    "grounding": ("precision", "recall", "box_recall"),
    "describe": (*_OBJECTS, "failure_rate", "empty", "repetition", "unfinished"),
}
TASKS = tuple(_NAMES)  # evaluation tasks, in the order of the report


def metric_names(task: str) -> frozenset[str]:
    """Returns the names of a task's metrics. Raises KeyError for a task without metrics."""
    return frozenset(f"{task}_{name}" for name in _NAMES[task])
