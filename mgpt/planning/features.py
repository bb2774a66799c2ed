"""Whether a training will take its frozen features from the cache, before its data is there."""

from __future__ import annotations

from mgpt.config import Settings
from mgpt.config.training import TrainingSettings
from mgpt.planning.datasets import nominal
from mgpt.planning.memory import BYTES
from mgpt.planning.sizes import Sizes

UNKNOWN = "features: auto is counted as off; how often an image is shown again is known with the data only"


def is_cached(settings: Settings, training: TrainingSettings, sizes: Sizes) -> bool:
    """What the settings say, or the stage's own rule (`mgpt.execution.feature_cache`) where nominal rows are enough for it. A row counts as a
    image of its own: rows that share one are shown more often, and take less room. Where that does not decide it, False."""
    if training.features != "auto":
        return training.features
    shows, distinct = _images(settings, training)
    size = sizes.image_tokens * sizes.feature_width * BYTES[training.features_dtype]
    return shows > training.features_above * distinct and distinct * size <= training.features_gigabytes * 1e9


def _images(settings: Settings, training: TrainingSettings) -> tuple[float, float]:
    """Images that all steps show, and how many of them are distinct at most."""
    samples, total = training.steps * training.global_batch_size, sum(training.mixture.values())
    shows = distinct = 0.0
    for name, weight in training.mixture.items():
        data = nominal(settings, name)[1]
        shown = samples * weight / total
        shows += data.images * shown
        distinct += data.images * min(data.rows, shown)
    return shows, distinct
