"""A view of the settings that is restricted to the keys a stage declares, so that its fingerprint cannot miss one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from mgpt.config.environment import SECTIONS


def child(value: Any, name: str) -> Any:
    """Returns the value of a section or a mapping at `name`. Raises KeyError where there is none."""
    if not isinstance(value, BaseModel):
        return value[name]
    if name not in type(value).model_fields:
        raise KeyError(name)
    return getattr(value, name)


def section(settings: Any, stage: str, model_name: str | None = None) -> Any:
    """Returns the settings of a stage, or of one model in it. Raises KeyError for a model without a section."""
    whole = child(settings, stage)
    return child(whole, model_name) if model_name else whole


class UndeclaredRead(Exception):
    """A stage read a key that it does not declare: its result would depend on a value outside its fingerprint."""


class DeclaredView(Mapping[str, Any]):
    """Attribute and item access to `value`, down to the declared keys; below them the plain settings objects.

    `storage`, `cluster` and `tracking` need no declaration: every stage reads them, and no fingerprint contains them.
    """

    def __init__(self, value: Any, declared: tuple[str, ...], stage: str, path: str = "") -> None:
        self._value, self._declared, self._stage, self._path = value, declared, stage, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        inside = any(path == one or path.startswith(f"{one}.") for one in (*self._declared, *SECTIONS))
        above = any(one.startswith(f"{path}.") for one in self._declared)
        if not inside and not above:
            raise UndeclaredRead(
                f"stage {self._stage} reads {path} but does not declare it; add it to the stage's params in dvc.yaml"
            )
        value = child(self._value, name)
        return value if inside else DeclaredView(value, self._declared, self._stage, path)

    def __iter__(self) -> Iterator[str]:
        whole = self._path or "the settings"
        raise UndeclaredRead(
            f"stage {self._stage} lists all of {whole}; declare {whole} in the stage's params in dvc.yaml"
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)
