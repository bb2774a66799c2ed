"""`Settings`: the params file and the environment as one frozen, validated object, one class a section."""

from __future__ import annotations

from typing import Any, Self

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mgpt.config.environment import PREFIX
from mgpt.config.evaluation import DescribeSettings, ModelEvaluationSettings
from mgpt.config.infrastructure import ClusterSettings, StorageSettings
from mgpt.config.models import ModelSettings
from mgpt.config.registry import GateSettings, TrackingSettings
from mgpt.config.sources import CurateSettings, DownloadSettings, SourceSettings
from mgpt.config.training import TrainingSettings


class Settings(BaseSettings):
    """Every section of the params file.

    A stage's section has the stage's name; settings that differ between models are keyed by model.

    A section that is absent is a part of the pipeline that does not run, so any part is a pipeline of its own.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, env_prefix=PREFIX, env_nested_delimiter="__"
    )

    @classmethod
    def from_sources(cls, *sources: PydanticBaseSettingsSource) -> Self:
        """Builds the settings from sources, the first of which overrides the others. Raises pydantic's
        ValidationError.
        """
        arguments: dict[str, Any] = {"_build_sources": (sources, {})}
        return cls(**arguments)

    sources: dict[str, SourceSettings] = {}
    download: DownloadSettings = DownloadSettings()
    curate: CurateSettings = CurateSettings()
    models: dict[str, ModelSettings] = {}
    pretrain: dict[str, TrainingSettings] = {}
    describe: DescribeSettings | None = None
    multitask: dict[str, TrainingSettings] = {}
    instruct: dict[str, TrainingSettings] = {}
    evaluate: dict[str, ModelEvaluationSettings] = {}
    promote: dict[str, GateSettings] = {}
    tracking: TrackingSettings = TrackingSettings()
    storage: StorageSettings = StorageSettings()
    cluster: ClusterSettings = ClusterSettings()
