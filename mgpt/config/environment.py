"""Environment variables of mgpt: those that set keys of the params file, and all others.

DVC sees the params file only, so a variable may set where things are (`MGPT_STORAGE__ROOT`), never what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mgpt.config.issues import ConfigIssue, KeyPath
from mgpt.config.schema import annotation_at, is_section, members

PREFIX = "MGPT_"
SECTIONS = ("storage", "cluster", "tracking")  # that the environment may set; part of no fingerprint

# Variables that are no keys of the params file.
CACHE = "MGPT_CACHE"  # folder of unpacked archives; default ~/.cache/mgpt
REPAIR_API_KEY = "MGPT_REPAIR_API_KEY"  # default of describe.repair.key_variable
JOB_FINGERPRINT = (
    "MGPT_JOB_FINGERPRINT"  # set by the client of a Ray job, which checked the settings next to the sources
)
JOB_INPUTS = "MGPT_JOB_INPUTS"  # JSON of the artifact digest of each input of a Ray job, by path


class EnvironmentSource(PydanticBaseSettingsSource):
    """A settings source of `MGPT_SECTION__KEY` variables, restricted to `SECTIONS`.

    A value is taken as it is where its field is a string, else read as YAML (`4`, `null`, `[3, 5]`).

    Attributes:
        values: nested values by key.
        variables: the variable that set each key path.
        issues: variables that may not be set, or whose name is misspelt.
    """

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self.values: dict[str, Any] = {}
        self.variables: dict[KeyPath, str] = {}
        self.issues: list[ConfigIssue] = []
        for name in sorted(name for name in environment if name.startswith(PREFIX)):
            self._read(name, environment[name])

    def __call__(self) -> dict[str, Any]:
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Returns the value of a top-level field, its key, and that it needs no decoding."""
        return self.values.get(field_name), field_name, False

    def variable(self, path: KeyPath) -> str:
        """Returns the variable that set the value at a path, or an empty string."""
        return next((self.variables[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.variables), "")

    def _read(self, name: str, text: str) -> None:
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        section = next((one for one in SECTIONS if path[0] == one or path[0].startswith(f"{one}_")), None)
        if len(path) == 1:
            if section is not None:
                key = path[0].removeprefix(section).removeprefix("_").upper() or "KEY"
                fix = f"rename it to {PREFIX}{section.upper()}__{key}"
                self._refuse(name, text, "two underscores separate section and key", fix)
            return
        if path[0] not in SECTIONS:
            rule = f"the environment sets only {', '.join(SECTIONS)}; DVC would not see a change of anything else"
            fix = f"set {'.'.join(path)} in the params file, or with `dvc exp run -S`"
            self._refuse(name, text, rule, fix)
            return
        annotation = annotation_at(self.settings_cls, path)
        if any(is_section(one) for one in members(annotation)):
            fix = f"set its keys one by one, for instance {name}__KEY"
            self._refuse(name, text, f"{'.'.join(path)} is a section, not a value", fix)
            return
        self._set(path, name, _converted(text, annotation))

    def _set(self, path: KeyPath, name: str, value: Any) -> None:
        place = self.values
        for part in path[:-1]:
            place = place.setdefault(str(part), {})
        place[str(path[-1])] = value
        self.variables[path] = name

    def _refuse(self, name: str, text: str, rule: str, fix: str) -> None:
        self.issues.append(ConfigIssue((name,), text, rule, fix, source="environment"))


def _converted(text: str, annotation: Any) -> Any:
    if not text or annotation is None or str in members(annotation):
        return text
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text
