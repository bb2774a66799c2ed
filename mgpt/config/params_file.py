"""The params file as plain values, read as DVC reads it, with the line of every key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from mgpt.config.issues import KeyPath

_MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key `<<`


@dataclass(frozen=True)
class ParamsFile:
    """A parsed params file.

    Attributes:
        name: the path as the user gave it, for messages.
        values: the content as dicts, lists and scalars.
        lines: line number, from 1, by key path; every part of a path is a string here.
    """

    name: str
    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]

    @classmethod
    def read(cls, path: str | Path) -> ParamsFile:
        """Reads a file as YAML 1.2 (`1e-4` is a number, `yes` a string), with anchors and merge keys, as DVC does.

        Raises:
            ValueError: the file is missing, is not a YAML mapping, or has a key twice.
        """
        file = Path(path)
        if not file.is_file():
            raise ValueError(
                f"no {file.name} here ({file.absolute().parent}); run mgpt in a project's folder, which has params.yaml"
            )
        yaml = YAML(typ="safe", pure=True)
        try:
            node = yaml.compose(file.read_text(encoding="utf-8"))
            lines = dict(_lines(node, ()))  # before the constructor, which resolves merge keys in place
            values = yaml.constructor.construct_document(node) if node is not None else None
        except (YAMLError, UnicodeDecodeError) as error:
            raise ValueError(_syntax_error(file, error)) from error
        if not isinstance(values, dict):
            raise ValueError(
                f"{file} holds {type(values).__name__}, not a mapping; start it with a section such as 'sources:'"
            )
        return cls(str(path), {str(key): value for key, value in values.items()}, lines)

    def line(self, path: KeyPath) -> int:
        """Returns the line of a key, or of the innermost section around it that the file has; 0 where it has none."""
        known = (self.lines.get(tuple(map(str, path[:length]))) for length in range(len(path), 0, -1))
        return next((line for line in known if line is not None), 0)

    def select(self, *pattern: str) -> Iterator[tuple[KeyPath, Any]]:
        """Yields every key path that matches a pattern, with its value. `*` matches any key or list index."""
        found: list[tuple[KeyPath, Any]] = [((), self.values)]
        for part in pattern:
            found = [
                ((*path, key), child)
                for path, value in found
                for key, child in _children(value)
                if part == "*" or part == key
            ]
        yield from found

    def names(self, *pattern: str) -> set[str]:
        """Returns the last part of every key path that matches a pattern."""
        return {str(path[-1]) for path, _ in self.select(*pattern)}


def _children(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return [(str(key), child) for key, child in value.items()]
    return list(enumerate(value)) if isinstance(value, list) else []


def _lines(node: Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields the line of every key and list item below a node.

    Keys of a merged mapping come first, so that own keys replace them.
    """
    if isinstance(node, SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    elif isinstance(node, MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value if key.tag != _MERGE_TAG]
        for merged in [value for key, value in node.value if key.tag == _MERGE_TAG]:
            for mapping in reversed(merged.value) if isinstance(merged, SequenceNode) else [merged]:
                yield from _lines(mapping, path)
    else:
        return
    for name, marked, child in children:
        yield (*path, name), marked.start_mark.line + 1
        yield from _lines(child, (*path, name))


def _syntax_error(file: Path, error: Exception) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{file} is not valid YAML: {error}"
    return (
        f"{file}:{error.problem_mark.line + 1}: not valid YAML: {error.problem}; correct this line or the one before it"
    )
