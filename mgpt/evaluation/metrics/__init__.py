"""The metrics of every evaluation task, one module a task.

Importing this package loads neither torch nor ray nor mlflow, so that settings can be checked against metric names.
"""

from __future__ import annotations

from mgpt.evaluation.types import Metric


def _object_metrics(task: str) -> tuple[Metric, ...]:
    return (
        Metric(f"{task}_object_recall", headline=True),
        Metric(f"{task}_hallucinated_objects", higher_is_better=False, headline=True),
        Metric(f"{task}_with_hallucination", higher_is_better=False),
        Metric(f"{task}_words", has_chance=False, descriptive=True),
    )


# Evaluation task -> its metrics; see the module of the task's name for their definitions.
METRICS: dict[str, tuple[Metric, ...]] = {
    "rec": (Metric("rec_accuracy", headline=True), Metric("rec_accuracy_original"), Metric("rec_mean_iou")),
    "reg": (Metric("reg_exact", headline=True), Metric("reg_word_overlap")),
    "vqa": (Metric("vqa_accuracy", headline=True), Metric("vqa_exact")),
    "captioning": _object_metrics("captioning"),
    "grounded_captioning": (
        Metric("grounded_captioning_precision", headline=True),
        Metric("grounded_captioning_recall", headline=True),
        Metric("grounded_captioning_box_recall"),
    ),
    "description": (
        *_object_metrics("description"),
        Metric("description_degeneration_rate", higher_is_better=False, headline=True, has_chance=False),
        Metric("description_empty", higher_is_better=False, has_chance=False),
        Metric("description_repetition", higher_is_better=False, has_chance=False),
        Metric("description_unfinished", higher_is_better=False, has_chance=False),
    ),
}
TASKS = tuple(METRICS)


def metric_names(task: str) -> frozenset[str]:
    """Returns the names under `scores` of metrics.json, which floors, ceilings and `compare` of `promote` may use.

    Descriptive metrics have no better direction, are stored apart, and are not included.

    Raises:
        ValueError: the task has no metrics.
    """
    if task not in METRICS:
        raise ValueError(f"evaluation task '{task}' has no metrics; use one of {', '.join(TASKS)}")
    return frozenset(metric.name for metric in METRICS[task] if not metric.descriptive)
