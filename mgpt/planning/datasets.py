"""Nominal sizes and lengths of a stage's data, from `datasets.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from mgpt.config import Settings
from mgpt.config.training import TrainingSettings
from mgpt.planning.work import Lengths

_FILE = Path(__file__).with_name("datasets.yaml")
DESCRIBED = "described"  # what the describe stage writes; no source has it


@dataclass(frozen=True)
class Nominal:
    """A dataset before anybody has it; see the head of `datasets.yaml`."""

    rows: int
    task: str
    content: float
    answer: float
    longest: int
    images: float


@dataclass(frozen=True)
class World:
    """Datasets by reader, with the overheads of their tokenizer."""

    instructions: Mapping[str, float]
    formats: Mapping[str, float]
    datasets: Mapping[str, Nominal]


@cache
def worlds() -> dict[str, World]:
    """`real` and `scenes`."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {
        name: World(
            one["instructions"],
            one["formats"],
            {reader: Nominal(**values) for reader, values in one["datasets"].items()},
        )
        for name, one in content.items()
    }


def nominal(settings: Settings, name: str) -> tuple[World, Nominal]:
    """The world and the nominal dataset behind a name of a mixture.

    Raises ValueError for a dataset that no source has, or whose reader has no nominal lengths.
    """
    scenes = any(source.kind == "scenes" for source in settings.sources.values())
    if name == DESCRIBED:
        world = worlds()["scenes" if scenes else "real"]
        return world, world.datasets[DESCRIBED]
    for source in settings.sources.values():
        if name in source.datasets:
            world = worlds()["scenes" if source.kind == "scenes" else "real"]
            reader = source.datasets[name].reader
            if reader not in world.datasets:
                known = ", ".join(world.datasets)
                raise ValueError(
                    f"mixture.{name}: reader {reader} has no nominal lengths to plan with; known: {known}; add it to {_FILE.name}"
                )
            return world, world.datasets[reader]
    raise ValueError(f"mixture.{name}: no source has this dataset; add it under sources, or correct the name")


def sizes(settings: Settings, stage: TrainingSettings) -> dict[str, int]:
    """Nominal rows of each dataset of a stage's mixture."""
    return {name: nominal(settings, name)[1].rows for name in stage.mixture}


def lengths(settings: Settings, stage: TrainingSettings) -> Lengths:
    """The average sample of a stage's mixture, and its longest row. Raises ValueError as `nominal` does."""
    total = sum(stage.mixture.values())
    text = supervised = images = 0.0
    longest = longest_answer = 0
    for name, weight in stage.mixture.items():
        world, data = nominal(settings, name)
        around = world.formats[stage.format] + world.instructions[stage.tasks.get(name, data.task)]
        share = weight / total
        text += share * (around + data.content + data.answer)
        supervised += share * data.answer
        images += share * data.images
        if around + data.longest > longest:
            longest, longest_answer = round(around + data.longest), round(data.longest - data.content)
    return Lengths(text, supervised, images, longest, longest_answer)
