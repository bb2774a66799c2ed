"""A view of the settings that shows a stage only the keys it declared in dvc.yaml, so that its fingerprint cannot miss one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

# Where things lie and run: read by every stage, part of no fingerprint.
ALWAYS = ("storage", "cluster", "tracking")


def child(value: Any, name: str) -> Any:
    """The value at `name` of a section or a mapping; a section's field goes by its name in the params file too. Raises KeyError."""
    if not isinstance(value, BaseModel):
        return value[name]
    for key, field in type(value).model_fields.items():
        if name in (key, field.alias):
            return getattr(value, key)
    raise KeyError(name)


def key_of(value: Any, name: str) -> str:
    """How the params file spells `name`."""
    field = type(value).model_fields.get(name) if isinstance(value, BaseModel) else None
    return field.alias or name if field is not None else name


class UndeclaredRead(Exception):
    """A stage read a key that dvc.yaml does not declare for it: its result would depend on what its fingerprint leaves out."""


class DeclaredView(Mapping[str, Any]):
    """Attribute and item access to `value`, down to the declared keys; below them the plain settings objects."""

    def __init__(self, value: Any, declared: tuple[str, ...], stage: str, path: str = "") -> None:
        self._value, self._declared, self._stage, self._path = value, declared, stage, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._get(name)

    def __getitem__(self, name: str) -> Any:
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        whole = self._path or "the settings"
        raise UndeclaredRead(f"stage {self._stage} lists all of {whole}; declare {whole} under params in dvc.yaml")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _get(self, name: str) -> Any:
        key = key_of(self._value, name)
        path = f"{self._path}.{key}" if self._path else key
        inside = any(path == one or path.startswith(one + ".") for one in (*self._declared, *ALWAYS))
        above = any(one.startswith(path + ".") for one in self._declared)
        if not inside and not above:
            raise UndeclaredRead(
                f"stage {self._stage} reads {path}, which it does not declare; add it under params of the stage in dvc.yaml"
            )
        value = child(self._value, name)
        return value if inside else DeclaredView(value, self._declared, self._stage, path)
