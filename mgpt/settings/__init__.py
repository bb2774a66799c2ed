"""Settings: the params file and the environment as one frozen, validated object, composed of one class a section."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mgpt.settings.evaluation import DescribeSettings, EvaluateSettings
from mgpt.settings.fields import Section
from mgpt.settings.infrastructure import ClusterSettings, StorageSettings
from mgpt.settings.loader import Mistake, SettingsError, overlay, read_params, validate
from mgpt.settings.models import ModelSettings
from mgpt.settings.registry import GateSettings, TrackingSettings
from mgpt.settings.sources import CurateSettings, DownloadSettings, SourceSettings
from mgpt.settings.training import TrainingSettings

__all__ = ["Mistake", "Settings", "SettingsError", "load"]

BySystem = Annotated[dict[str, TrainingSettings], Field(min_length=1)]


class Settings(Section):
    """Every section of the params file. Stages' sections bear the stages' names; what differs between systems sits under the system's
    name.
    """

    sources: dict[str, SourceSettings]
    download: DownloadSettings = DownloadSettings()
    curate: CurateSettings = CurateSettings()
    models: Annotated[dict[str, ModelSettings], Field(min_length=1)]
    pretrain: BySystem
    describe: DescribeSettings = DescribeSettings()
    multitask: BySystem
    instruct: BySystem
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
    settings, found = validate(Settings, content)
    mistakes += found
    if settings is not None:
        assert isinstance(settings, Settings)
        mistakes += [one for check in CHECKS for one in check(settings)]
    if mistakes or not isinstance(settings, Settings):
        raise SettingsError(str(path), mistakes)
    return settings


def section(settings: Any, stage: str, system: str | None = None) -> Any:
    """The settings of a stage, or of one system in it."""
    from mgpt.settings.declared import child

    whole = child(settings, stage)
    return child(whole, system) if system else whole


def _systems_have_models(settings: Settings) -> Iterator[Mistake]:
    for stage in ("pretrain", "multitask", "instruct", "promote"):
        for system in getattr(settings, stage):
            if system not in settings.models:
                rule = "a system that is trained or promoted has a model"
                yield Mistake(
                    f"{stage}.{system}", "...", rule, f"add models.{system}, or remove this section; models: {', '.join(settings.models)}"
                )


def _cluster_reaches_store(settings: Settings) -> Iterator[Mistake]:
    """A job on another machine cannot write to this machine's disk; on this machine it can."""
    local = ("http://127.0.0.1", "http://localhost", "https://localhost")
    if not settings.cluster.address or settings.cluster.address.startswith(local):
        return
    if "://" not in settings.storage.root:
        rule = "a cluster elsewhere cannot reach a folder of this machine"
        yield Mistake("storage.root", settings.storage.root, rule, "use s3://bucket/prefix, or an empty cluster.address")
    if settings.tracking.uri.startswith("sqlite"):
        rule = "a cluster elsewhere cannot reach a database file of this machine"
        yield Mistake(
            "tracking.uri", settings.tracking.uri, rule, "use the http(s) address of an MLflow server, or an empty cluster.address"
        )


CHECKS: tuple[Callable[[Settings], Iterator[Mistake]], ...] = (_systems_have_models, _cluster_reaches_store)
