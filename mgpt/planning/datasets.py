"""Nominal sizes and text lengths of a stage's data, from `datasets.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from mgpt.config import Settings
from mgpt.config.training import TrainingSettings
from mgpt.planning.flops import Lengths

_FILE = Path(__file__).with_name("datasets.yaml")
DESCRIBED = "described"  # written by the describe stage; no source has it


@dataclass(frozen=True)
class NominalDataset:
    """Size and average lengths of a dataset that need not be present; fields as explained in `datasets.yaml`."""

    rows: int
    task: str
    content: float
    answer: float
    longest: int
    images: float


@dataclass(frozen=True)
class DatasetFamily:
    """Datasets by reader, with token overheads of their tokenizer: instructions by task, prompt formats by name."""

    instructions: Mapping[str, float]
    formats: Mapping[str, float]
    datasets: Mapping[str, NominalDataset]


@cache
def dataset_families() -> dict[str, DatasetFamily]:
    """Returns the families `real` and `scenes` of `datasets.yaml`."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {
        name: DatasetFamily(
            family["instructions"],
            family["formats"],
            {reader: NominalDataset(**values) for reader, values in family["datasets"].items()},
        )
        for name, family in content.items()
    }


def nominal_dataset(settings: Settings, name: str) -> tuple[DatasetFamily, NominalDataset]:
    """Returns the family and the nominal dataset behind a name in a mixture.

    Raises:
        ValueError: no source has the dataset, or its reader has no nominal lengths.
    """
    has_scenes = any(source.kind == "scenes" for source in settings.sources.values())
    if name == DESCRIBED:
        family = dataset_families()["scenes" if has_scenes else "real"]
        return family, family.datasets[DESCRIBED]
    for source in settings.sources.values():
        if name in source.datasets:
            family = dataset_families()["scenes" if source.kind == "scenes" else "real"]
            reader = source.datasets[name].reader
            if reader not in family.datasets:
                raise ValueError(
                    f"mixture.{name}: reader {reader} has no nominal lengths to plan with; add it to "
                    f"mgpt/planning/{_FILE.name} (known: {', '.join(family.datasets)})"
                )
            return family, family.datasets[reader]
    raise ValueError(f"mixture.{name}: no source has this dataset; add it under sources, or correct the name")


def dataset_rows(settings: Settings, training: TrainingSettings) -> dict[str, int]:
    """Returns the nominal rows of each dataset in a stage's mixture."""
    return {name: nominal_dataset(settings, name)[1].rows for name in training.mixture}


def mixture_lengths(settings: Settings, training: TrainingSettings) -> Lengths:
    """Computes the average sample of a stage's mixture and its longest row.

    Raises ValueError as `nominal_dataset` does.
    """
    total = sum(training.mixture.values())
    text = supervised = images = 0.0
    longest = longest_answer = 0
    for name, weight in training.mixture.items():
        family, dataset = nominal_dataset(settings, name)
        overhead = family.formats[training.format] + family.instructions[training.tasks.get(name, dataset.task)]
        share = weight / total
        text += share * (overhead + dataset.content + dataset.answer)
        supervised += share * dataset.answer
        images += share * dataset.images
        if overhead + dataset.longest > longest:
            longest, longest_answer = round(overhead + dataset.longest), round(dataset.longest - dataset.content)
    return Lengths(text, supervised, images, longest, longest_answer)
