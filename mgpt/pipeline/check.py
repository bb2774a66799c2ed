"""Checks that every reader, task, prompt format, metric, vocabulary and backbone in the params file exists."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mgpt.config import ConfigIssue, Settings, read_settings
from mgpt.config.cross_validation import TRAINING_STAGES, unknown_name
from mgpt.config.loader import LoadedSettings
from mgpt.config.params_file import ParamsFile
from mgpt.config.sources import SourceSettings
from mgpt.data.datasets import READERS
from mgpt.data.tasks import shipped_tasks
from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.metrics import TASKS, metric_names
from mgpt.models.prompt_formats import PROMPT_FORMATS

_PACKAGE = "package://"


@dataclass(frozen=True)
class NameRule:
    """The names that may be at the key paths of a pattern: as values, or as keys where `as_key` is set."""

    pattern: tuple[str, ...]
    rule: str
    known: Collection[str]
    as_key: bool = False

    def issues(self, params: ParamsFile) -> Iterator[ConfigIssue]:
        """Yields an issue for every unknown name."""
        for path, value in params.select(*self.pattern):
            name = path[-1] if self.as_key else value
            if isinstance(name, str) and name not in self.known:
                yield unknown_name(path, "..." if isinstance(value, dict) else value, self.rule, self.known)


def load_checked_settings(path: str | Path = "params.yaml", environment: Mapping[str, str] = os.environ) -> Settings:
    """Loads the settings as `load_settings` does, and checks every name in them.

    Raises:
        ConfigError: every error at once (a ValueError).
        ValueError: the file is missing, or is not a YAML mapping.
    """
    return read_checked_settings(path, environment).checked()


def read_checked_settings(
    path: str | Path = "params.yaml", environment: Mapping[str, str] = os.environ
) -> LoadedSettings:
    """Reads the settings with their errors, unknown names included. Raises ValueError where the file cannot be read."""
    loaded = read_settings(path, environment)
    return loaded.with_issues(name_issues(loaded.settings, loaded.params))


def name_issues(settings: Settings, params: ParamsFile) -> list[ConfigIssue]:
    """Returns an issue for every name in the params file that does not exist."""
    found = [issue for rule in _rules(params) for issue in rule.issues(params)]
    return [*found, *_vocabularies(params), *_backbones(settings, params)]


def _rules(params: ParamsFile) -> list[NameRule]:
    rules = [NameRule(("sources", "*", "datasets", "*", "reader"), "a dataset reader", READERS)]
    for stage in (*TRAINING_STAGES, "evaluate"):
        rules.append(NameRule((stage, "*", "format"), "a prompt format", PROMPT_FORMATS))
    for stage in TRAINING_STAGES:
        rules.append(NameRule((stage, "*", "tasks", "*"), "a task of mgpt/data/tasks.yaml", shipped_tasks()))
    rules.append(NameRule(("evaluate", "*", "tasks", "*"), "an evaluation task", TASKS, as_key=True))
    for model_name in sorted(params.names("promote", "*")):
        known = _measured(params, model_name)
        rule = f"a metric of a task in evaluate.{model_name}.tasks"
        rules += [
            NameRule(("promote", model_name, key, "*"), rule, known, as_key=True) for key in ("floors", "ceilings")
        ]
        rules.append(NameRule(("promote", model_name, "compare", "*"), rule, known))
    return rules


def _measured(params: ParamsFile, model_name: str) -> frozenset[str]:
    """Returns the metrics that evaluate measures of a model; all metrics where it has no valid section for it."""
    tasks = params.names("evaluate", model_name, "tasks", "*") & set(TASKS)
    return frozenset[str]().union(*(metric_names(task) for task in tasks or TASKS))


def _vocabularies(params: ParamsFile) -> Iterator[ConfigIssue]:
    for pattern in (("describe", "filters", "vocabulary"), ("evaluate", "*", "vocabulary")):
        for path, name in params.select(*pattern):
            if not isinstance(name, str) or not name:
                continue
            try:
                load_vocabulary(name)
            except ValueError as error:
                rule = f"a vocabulary that exists and is valid ({error})"
                yield ConfigIssue(path, name, rule, "use shapes, coco, or the path of a YAML file")


def _backbones(settings: Settings, params: ParamsFile) -> Iterator[ConfigIssue]:
    """Folders of backbones whose source is on this machine exist."""
    for part in ("vision", "language", "qformer"):
        for path, backbone in params.select("models", "*", part):
            name, _, below = str(backbone).partition("/")
            folders = _local_folders(settings.sources[name]) if name in settings.sources else None
            if folders and not any((folder / below).is_dir() for folder in folders):
                rule = f"SOURCE/FOLDER, with FOLDER in {' or '.join(map(str, folders))}"
                known = {f"{name}/{child.name}" for folder in folders for child in folder.iterdir() if child.is_dir()}
                yield unknown_name(path, backbone, rule, known)


def _local_folders(source: SourceSettings) -> list[Path] | None:
    """Returns the source's folders; None where a part of its files is elsewhere or still packed."""
    folders = []
    for location in source.locations:
        if location.startswith(_PACKAGE):
            package, _, inside = location.removeprefix(_PACKAGE).partition("/")
            folders.append(Path(str(resources.files(package))) / inside)
        elif "://" not in location:
            folders.append(Path(location).expanduser())
        else:
            return None
    present = [folder for folder in folders if folder.is_dir()]
    packed = any(True for folder in present for pattern in source.unpack for _ in folder.rglob(pattern))
    return None if source.files or packed else present
