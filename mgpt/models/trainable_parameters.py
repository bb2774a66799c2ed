"""The freeze report: which parameters are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FreezeReport:
    """parts: (trained, all) parameters by top-level module. names: of the trained parameters."""

    parts: dict[str, tuple[int, int]]
    names: tuple[str, ...]

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(trained for trained, _ in self.parts.values())

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return sum(count for _, count in self.parts.values())

    @property
    def share(self) -> float:
        """Trained parameters over all, 0 to 1."""
        return self.trainable / max(self.total, 1)

    def __str__(self) -> str:
        rows = [f"{part:<16} {trained:>14,} of {count:>14,}" for part, (trained, count) in self.parts.items()]
        return "\n".join(
            ["trained parameters", *rows, f"{'all':<16} {self.trainable:>14,} of {self.total:>14,} ({self.share:.4%})"]
        )


def freeze_report(model: nn.Module) -> FreezeReport:
    """Counts a model's parameters by top-level module."""
    parts: dict[str, tuple[int, int]] = {}
    names = []
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        trained, count = parts.get(part, (0, 0))
        parts[part] = (trained + parameter.numel() * parameter.requires_grad, count + parameter.numel())
        if parameter.requires_grad:
            names.append(name)
    return FreezeReport(parts, tuple(names))
