"""The cards of all datasets, read from `cards.yaml`."""

from __future__ import annotations

from pathlib import Path

import yaml

from mgpt.data.datasets.base import Card

_FILE = Path(__file__).with_name("cards.yaml")


def _card(name: str, values: dict[str, str | list[str]]) -> Card:
    return Card(name=name, **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})  # type: ignore[arg-type]


CARDS: dict[str, Card] = {
    name: _card(name, values) for name, values in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()
}
