"""Settings: the params file and the environment as one frozen, validated object, composed of one class a section."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mgpt.config.base import Section
from mgpt.config.cross_validation import mistakes_between_sections
from mgpt.config.evaluation import DescribeSettings, EvaluateSettings
from mgpt.config.infrastructure import ClusterSettings, StorageSettings
from mgpt.config.loader import Mistake, SettingsError, overlay, read_params, validate
from mgpt.config.models import ModelSettings
from mgpt.config.registry import GateSettings, TrackingSettings
from mgpt.config.sources import CurateSettings, DownloadSettings, SourceSettings
from mgpt.config.training import TrainingSettings

__all__ = ["Mistake", "Settings", "SettingsError", "load"]

JOB_FINGERPRINT = (
    "MGPT_JOB_IDENTITY"  # set by the client of a Ray job, which has judged the settings where the sources are
)
ByModel = Annotated[dict[str, TrainingSettings], Field(min_length=1)]


class Settings(Section):
    """Every section of the params file. Stages' sections bear the stages' names; what differs between models sits under the model's
    name.
    """

    sources: dict[str, SourceSettings]
    download: DownloadSettings = DownloadSettings()
    curate: CurateSettings = CurateSettings()
    models: Annotated[dict[str, ModelSettings], Field(min_length=1)]
    pretrain: ByModel
    describe: DescribeSettings = DescribeSettings()
    multitask: ByModel
    instruct: ByModel
    evaluate: EvaluateSettings
    promote: Annotated[dict[str, GateSettings], Field(min_length=1)]
    tracking: TrackingSettings = TrackingSettings()
    storage: StorageSettings = StorageSettings()
    cluster: ClusterSettings = ClusterSettings()


def load(path: str | Path = "params.yaml", environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads and judges the settings.

    Args:
        path: the params file; relative paths inside it are relative to the current folder.
        environment: `MGPT_STORAGE__...`, `MGPT_CLUSTER__...` and `MGPT_TRACKING__...` override the file.

    Raises:
        SettingsError: every mistake at once (a ValueError).
        ValueError: the file is missing or no YAML.
    """
    content = read_params(path)
    mistakes = overlay(content, environment)
    settings, found = validate(Settings, deepcopy(content))
    mistakes += found
    if settings is not None:
        assert isinstance(settings, Settings)
        mistakes += mistakes_between_sections(settings, content, in_job=JOB_FINGERPRINT in environment)
    if mistakes or not isinstance(settings, Settings):
        raise SettingsError(str(path), mistakes)
    return settings


def section(settings: Any, stage: str, model_name: str | None = None) -> Any:
    """The settings of a stage, or of one model in it."""
    from mgpt.config.restricted_view import child

    whole = child(settings, stage)
    return child(whole, model_name) if model_name else whole
