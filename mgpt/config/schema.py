"""Types and keys of the settings at a dotted path, for messages and for converting environment variables."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from mgpt.config.issues import KeyPath


def annotation_at(model: type[BaseModel], path: KeyPath) -> Any:
    """Returns the type of the value at a path below a model, or None where the model has no such key."""
    current: Any = model
    for part in path:
        current = next((found for one in members(current) if (found := _child(one, part)) is not None), None)
    return current


def key_names(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Returns the keys that the section at a path takes, sorted; none where it takes any."""
    sections = [one for one in members(annotation_at(model, path)) if is_section(one)]
    return sorted({name for one in sections for name in one.model_fields})


def is_section(annotation: Any) -> bool:
    """Returns True for a section's class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def members(annotation: Any) -> Iterator[Any]:
    """Yields the members of a union, `Annotated` unwrapped; a plain type yields itself."""
    if get_origin(annotation) is Annotated:
        yield from members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from members(one)
    else:
        yield annotation


def _child(annotation: Any, part: str | int) -> Any:
    if is_section(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field is not None else None
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return get_args(annotation)[0] if get_origin(annotation) is tuple else None
