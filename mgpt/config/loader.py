"""Loads the settings from the params file and the environment, and reports every error at once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from mgpt.config.base import RULE_ERROR
from mgpt.config.cross_validation import cross_section_issues
from mgpt.config.environment import JOB_FINGERPRINT, EnvironmentSource
from mgpt.config.issues import ConfigError, ConfigIssue, KeyPath
from mgpt.config.params_file import ParamsFile
from mgpt.config.schema import key_names
from mgpt.config.settings import Settings


class ParamsSource(PydanticBaseSettingsSource):
    """A settings source of the values of a params file."""

    def __init__(self, settings_cls: type[BaseSettings], params: ParamsFile) -> None:
        super().__init__(settings_cls)
        self.values: dict[str, Any] = deepcopy(params.values)

    def __call__(self) -> dict[str, Any]:
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Returns the value of a top-level field, its key, and that it needs no decoding."""
        return self.values.get(field_name), field_name, False


@dataclass(frozen=True)
class LoadedSettings:
    """Settings with what is wrong with them.

    Attributes:
        settings: what remains valid where `issues` has entries: a wrong value counts as absent.
        params: the file that they come from.
        variables: the environment variables that override it.
        issues: all errors found, in the order of the file.
    """

    settings: Settings
    params: ParamsFile
    variables: EnvironmentSource
    issues: list[ConfigIssue]

    def with_issues(self, more: Iterable[ConfigIssue]) -> LoadedSettings:
        """Adds issues, each with its line or environment variable, in the order of the file."""
        located = [self._located(one) for one in more]
        return replace(self, issues=sorted([*self.issues, *located], key=lambda one: one.line))

    def checked(self) -> Settings:
        """Returns the settings. Raises ConfigError with every issue, if there is one."""
        if self.issues:
            raise ConfigError(self.params.name, self.issues)
        return self.settings

    def _located(self, issue: ConfigIssue) -> ConfigIssue:
        if variable := self.variables.variable(issue.path):
            return replace(issue, source=variable)
        line = self.params.line(issue.path)
        return replace(issue, source=f"{self.params.name}:{line}" if line else self.params.name, line=line)


def load_settings(path: str | Path = "params.yaml", environment: Mapping[str, str] = os.environ) -> Settings:
    """Loads and validates the settings. Names of readers, tasks and metrics are checked by `mgpt.pipeline.check`.

    Args:
        path: the params file; relative paths inside it are relative to the current folder.
        environment: `MGPT_STORAGE__...`, `MGPT_CLUSTER__...` and `MGPT_TRACKING__...` override the file.

    Raises:
        ConfigError: every error at once (a ValueError).
        ValueError: the file is missing, or is not a YAML mapping.
    """
    return read_settings(path, environment).checked()


def read_settings(path: str | Path = "params.yaml", environment: Mapping[str, str] = os.environ) -> LoadedSettings:
    """Reads the settings as `load_settings` does, and returns them with their errors.

    Raises:
        ValueError: the file is missing, or is not a YAML mapping.
    """
    params = ParamsFile.read(path)
    variables = EnvironmentSource(Settings, environment)
    settings, found = _validate(variables, ParamsSource(Settings, params))
    found += cross_section_issues(settings, params, in_job=JOB_FINGERPRINT in environment)
    return LoadedSettings(settings, params, variables, variables.issues).with_issues(found)


def _validate(variables: EnvironmentSource, params: ParamsSource) -> tuple[Settings, list[ConfigIssue]]:
    """Validates, drops what is wrong, and validates again until the rest is valid.

    So rules over several keys, which pydantic checks only when each key is valid, are checked too.
    """
    found: dict[tuple[KeyPath, str], ConfigIssue] = {}
    while True:
        try:
            return Settings.from_sources(variables, params), list(found.values())
        except ValidationError as error:
            details = error.errors()
        dropped = False
        for detail in details:
            issue = _issue(detail)
            if not _is_consequence(detail["type"], issue.path, found.values()):
                found.setdefault((issue.path, issue.rule), issue)
            for values in (variables.values, params.values):
                dropped |= _drop(values, issue.path)
        assert dropped, details


def _is_consequence(kind: str, path: KeyPath, found: Iterable[ConfigIssue]) -> bool:
    """Returns True when a key is absent or empty only because it, or all below it, was dropped before."""
    return kind in ("missing", "too_short") and any(one.path[: len(path)] == path for one in found)


def _issue(detail: ErrorDetails) -> ConfigIssue:
    """Converts an error of pydantic's."""
    path, kind, value = detail["loc"], detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return ConfigIssue(path, value, "no such key", _suggestion(path))
    if kind == "missing":
        return ConfigIssue(path, None, "required", f"add {path[-1]}", absent=True)
    if kind == RULE_ERROR:
        context = detail["ctx"]
        inner = tuple(part for part in str(context["key"]).split(".") if part)
        return ConfigIssue((*path, *inner), _at(value, inner), str(context["rule"]), str(context["fix"]))
    # pydantic ends some messages with how it tried to read the value, which is of no use here.
    rule = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    rule = rule.partition(", unable to parse")[0]
    fix = f"change it to {rule}" if detail["msg"].startswith("Input should be ") else "correct it"
    return ConfigIssue(path, value, rule, fix)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def _suggestion(path: KeyPath) -> str:
    known = key_names(Settings, path[:-1])
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it; keys here: {', '.join(known)}"


def _drop(values: dict[str, Any], path: KeyPath) -> bool:
    """Removes the deepest part of a path that is a key of a mapping; returns False where nothing of the path is
    there.
    """
    chain: list[tuple[Any, str | int]] = []
    place: Any = values
    for part in path:
        try:
            following = place[part]
        except (KeyError, IndexError, TypeError):
            break
        chain.append((place, part))
        place = following
    container = next(((place, part) for place, part in reversed(chain) if isinstance(place, dict)), None)
    if container is not None:
        del container[0][container[1]]
    return container is not None
