"""Errors in the settings, as objects and as one exception that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]  # keys of sections and indices of lists
_SHOWN_CHARACTERS = 80  # of a value


@dataclass(frozen=True)
class ConfigIssue:
    """One error in the settings.

    Attributes:
        path: where the value is in the settings.
        value: the value there; None with `absent`.
        rule: what the value must be.
        fix: how to correct it.
        absent: a required key is missing.
        source: `FILE:LINE`, or the environment variable that set the value.
        line: line of the params file, 0 where the value has none.
    """

    path: KeyPath
    value: Any
    rule: str
    fix: str
    absent: bool = False
    source: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """The dotted key, with list indices in brackets: `promote.minigpt4.compare[1]`."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).removeprefix(".")

    def __str__(self) -> str:
        shown = "is missing" if self.absent else f"= {_shortened(self.value)}"
        head = f"{self.source}: {self.key} {shown}" if self.source else f"{self.key} {shown}"
        return f"{head}\n    rule: {self.rule}\n    fix:  {self.fix}"


class ConfigError(ValueError):
    """Every issue of one params file and its environment.

    Attributes:
        issues: the issues, in the order of the file.
    """

    def __init__(self, source: str, issues: Sequence[ConfigIssue]) -> None:
        self.issues = list(issues)
        count = "1 error" if len(issues) == 1 else f"{len(issues)} errors"
        super().__init__(f"{source}: {count}, nothing was started\n  " + "\n  ".join(map(str, issues)))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
