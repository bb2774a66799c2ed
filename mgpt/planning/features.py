"""Prediction of whether a training stage will use the feature cache, before its data exists."""

from __future__ import annotations

from mgpt.config import Settings
from mgpt.config.training import TrainingSettings
from mgpt.planning.datasets import nominal_dataset
from mgpt.planning.memory import BYTES
from mgpt.planning.sizes import ModelSizes

UNDECIDED = "features: auto is planned as off; how often an image repeats is known only once the data is there"


def is_cached(settings: Settings, training: TrainingSettings, sizes: ModelSizes) -> bool:
    """Returns the setting, or for `auto` the stage's own rule (`mgpt.execution.feature_cache`) applied to nominal rows.

    Each row counts as an image of its own; real rows that share images repeat them more often and need less room.
    False where nominal rows do not decide it.
    """
    if training.features != "auto":
        return training.features
    shown, distinct = _image_counts(settings, training)
    image_bytes = sizes.image_tokens * sizes.feature_width * BYTES[training.features_dtype]
    return shown > training.features_above * distinct and distinct * image_bytes <= training.features_gigabytes * 1e9


def _image_counts(settings: Settings, training: TrainingSettings) -> tuple[float, float]:
    """Images shown over all steps, and an upper bound on the distinct ones among them."""
    samples, total = training.steps * training.global_batch_size, sum(training.mixture.values())
    shown = distinct = 0.0
    for name, weight in training.mixture.items():
        dataset = nominal_dataset(settings, name)[1]
        drawn = samples * weight / total
        shown += dataset.images * drawn
        distinct += dataset.images * min(dataset.rows, drawn)
    return shown, distinct
