"""Reads the params file and the environment, and reports every mistake at once: key, value, rule and fix.

DVC sees the params file only, so the environment may set nothing that changes a result: it says where things lie (`MGPT_STORAGE__ROOT`),
never what is done.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

PREFIX = "MGPT_"
FROM_ENVIRONMENT = ("storage", "cluster", "tracking")
_MISSING = object()


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with the settings. `key` is dotted; `value` is what stands there (None with `absent`)."""

    key: str
    value: Any
    rule: str
    fix: str
    absent: bool = False

    def __str__(self) -> str:
        shown = "is missing" if self.absent else f"= {self.value!r}"
        return f"{self.key} {shown}\n    rule: {self.rule}\n    fix:  {self.fix}"


class SettingsError(ValueError):
    """All mistakes of one params file."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(f"{source}: {count}, nothing was started\n  " + "\n  ".join(str(one) for one in mistakes))


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it (1.2): `1e-4` is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
# The first resolver that matches wins, and an integer matches both.
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first].sort(key=lambda pair: pair[0] != "tag:yaml.org,2002:int")


def read_params(path: str | Path) -> dict[str, Any]:
    """The params file as plain values. Raises ValueError where it is missing or no YAML mapping."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{file.absolute()} does not exist; run from the project's folder, where params.yaml is, or name the file with --params"
        )
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no valid YAML: {error}; mend the line it names") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds {type(content).__name__}, not sections; start it with a section such as 'storage:'"
        )
    return content


def overlay(content: dict[str, Any], environment: Mapping[str, str]) -> list[Mistake]:
    """Puts `MGPT_SECTION__KEY` variables into `content`; returns those that may not be set so."""
    wrong = []
    for name in sorted(name for name in environment if name.startswith(PREFIX)):
        section, *keys = name.removeprefix(PREFIX).lower().split("__")
        if not keys:
            if meant := next((one for one in FROM_ENVIRONMENT if section.startswith(one + "_")), None):
                fix = f"write {PREFIX}{meant.upper()}__{section.removeprefix(meant + '_').upper()}"
                wrong.append(Mistake(name, environment[name], "two underscores stand between section and key", fix))
            continue
        if section not in FROM_ENVIRONMENT:
            rule = (
                f"the environment sets only {', '.join(FROM_ENVIRONMENT)}: DVC would not see a change of anything else"
            )
            wrong.append(
                Mistake(
                    name,
                    environment[name],
                    rule,
                    f"set {'.'.join([section, *keys])} in the params file, or with dvc exp run -S",
                )
            )
            continue
        place = content.setdefault(section, {})
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = yaml.load(environment[name], _Loader) if environment[name] else ""
    return wrong


def validate(model: type[BaseModel], content: dict[str, Any]) -> tuple[BaseModel | None, list[Mistake]]:
    """Validates, drops what is wrong, and validates again until the rest holds, so that a rule over several keys is judged too.

    Returns the settings (None where something required is missing) and all mistakes, in the file's order.
    """
    found: dict[tuple[str, str], Mistake] = {}
    while True:
        try:
            return model.model_validate(content), list(found.values())
        except ValidationError as error:
            dropped = False
            for detail in error.errors():
                one = _mistake(model, detail)
                if not _follows(detail["type"], one.key, found.values()):
                    found.setdefault((one.key, one.rule), one)
                dropped |= _drop(content, (*detail["loc"], *_inner(detail)))
            if not dropped:
                return None, list(found.values())


def _follows(kind: str, key: str, found: Iterable[Mistake]) -> bool:
    """Whether something is absent only because it, or all below it, was dropped as a mistake before."""
    return kind in ("missing", "too_short") and any(one.key == key or one.key.startswith(f"{key}.") for one in found)


def _mistake(model: type[BaseModel], detail: ErrorDetails) -> Mistake:
    location, kind = detail["loc"], detail["type"]
    key = ".".join(str(part) for part in location)
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return Mistake(key, detail["input"], "no such key", _suggest(model, location))
    if kind == "missing":
        return Mistake(key, None, "required", f"add {key}", absent=True)
    if kind == "mistake":
        inner = _inner(detail)
        return Mistake(
            ".".join([key, *inner] if key else inner),
            _at(detail["input"], inner),
            str(context["rule"]),
            str(context["fix"]),
        )
    rule = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return Mistake(
        key,
        detail["input"],
        rule,
        f"change {key} so that it is {rule}" if detail["msg"].startswith("Input") else f"correct {key}",
    )


def _inner(detail: ErrorDetails) -> list[str]:
    """The guilty key below the section whose validator spoke, where it named one."""
    return [part for part in str(detail.get("ctx", {}).get("key", "")).split(".") if part]


def _at(value: Any, inner: list[str]) -> Any:
    for part in inner:
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def _suggest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    known = _keys(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it; keys here: {', '.join(known)}"


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at `location` takes."""
    current: Any = model
    for part in location:
        fields = {
            name: field
            for one in _models(current)
            for key, field in one.model_fields.items()
            for name in (key, field.alias)
        }
        if part in fields:
            current = fields[part].annotation
        elif mapped := [get_args(one)[1] for one in _members(current) if get_args(one) and len(get_args(one)) == 2]:
            current = mapped[0]
    return sorted({field.alias or name for one in _models(current) for name, field in one.model_fields.items()})


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [one for one in _members(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]


def _members(annotation: Any) -> Iterator[Any]:
    """The annotation, or the members of a union."""
    arguments = get_args(annotation)
    if (
        arguments
        and not hasattr(annotation, "__metadata__")
        and getattr(annotation, "__origin__", None) not in (dict, list, tuple)
    ):
        for one in arguments:
            yield from _members(one)
    elif hasattr(annotation, "__metadata__"):
        yield from _members(arguments[0])
    else:
        yield annotation


def _drop(content: Any, location: tuple[int | str, ...]) -> bool:
    """Removes the deepest part of `location` that stands in `content`; False when nothing of it does."""
    chain: list[tuple[Any, int | str]] = []
    place = content
    for part in location:
        try:
            following = place[part]
        except (KeyError, IndexError, TypeError):
            break
        chain.append((place, part))
        place = following
    for container, part in reversed(chain):
        if isinstance(container, dict):
            del container[part]
            return True
    return False
