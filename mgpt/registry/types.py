"""Types of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from mgpt.storage import Store
from mgpt.storage.types import WeightsReference

Action = Literal["promoted", "rejected", "rolled back"]


@dataclass(frozen=True)
class ServingModel:
    """The serving side of a registered model, handed in by the caller because the registry does not import
    `mgpt.serving`.

    code: file of the MLflow pyfunc model. parameters: inference parameters of its signature with their default values.
    answer: loads referenced weights from a store as a user would, and returns the model's text for a prompt about a
    sample image; raises ValueError or OSError when the model cannot be loaded.
    """

    code: Path
    parameters: Mapping[str, int]
    answer: Callable[[WeightsReference, Store, str], str]


@dataclass(frozen=True)
class Candidate:
    """A trained and evaluated model.

    weights: folder written by `model.save_trainable`. metrics: metrics file of the evaluate stage. data: manifest of
        the curate stage.
    stages: fingerprint of every stage the model went through, by stage name; their MLflow runs are looked up by it.
    backbones: folder or URI of each frozen backbone by name; default: the location recorded in the weights'
        config.json.
    checkpoint: the evaluated checkpoint whose scores count.
    """

    model_name: str
    weights: Path
    metrics: Path
    data: Path
    stages: Mapping[str, str]
    backbones: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str = "instruct"


@dataclass(frozen=True)
class Check:
    """One rule of the promotion policy: whether the candidate passes it, and why."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """The outcome for one version. `champion` and `before` are the champion's version numbers after and before it
    (None: none)."""

    model: str
    version: int
    action: Action
    champion: int | None
    before: int | None
    checks: list[Check]

    @property
    def promoted(self) -> bool:
        """True if the version is champion now."""
        return self.action == "promoted"

    @property
    def reasons(self) -> list[str]:
        """One line per check, failed ones first."""
        ordered = sorted(self.checks, key=lambda check: check.passed)
        return [f"{'passed' if check.passed else 'FAILED'} {check.name}: {check.reason}" for check in ordered]

    def text(self) -> str:
        """Returns the decision as printed for a user."""
        if self.promoted and self.before == self.version:
            head = f"{self.model} version {self.version} is already champion and still passes the promotion policy"
        elif self.promoted:
            before = f"version {self.before}" if self.before else "none"
            head = f"{self.model} version {self.version} is now champion (before: {before})"
        else:
            champion = f"version {self.champion}" if self.champion else "none"
            head = f"{self.model} version {self.version} is {self.action}; champion: {champion}"
        return "\n".join([head, *(f"  {reason}" for reason in self.reasons)])

    def as_dict(self) -> dict[str, object]:
        """Returns the decision as a JSON-serialisable dict."""
        return asdict(self)
