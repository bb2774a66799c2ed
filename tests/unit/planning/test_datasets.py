"""Nominal lengths of the shapes world compared with its samples, rendered and tokenised as in training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from mgpt.config import Settings, load_settings
from mgpt.data.datasets import READERS, RejectedRecord
from mgpt.data.synthetic.formats import write_world
from mgpt.data.tasks import render
from mgpt.models import BackboneReference, MiniGPTProcessor
from mgpt.models.backbones import config_from_backbones
from mgpt.planning.datasets import mixture_lengths

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "mgpt" / "models" / "shapes"
SAMPLES = 25  # per dataset


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(ROOT / "params.yaml", {})


@pytest.fixture(scope="module")
def processor() -> MiniGPTProcessor:
    unread = {part: BackboneReference("", "", "") for part in ("vision", "language")}
    config = config_from_backbones(SHAPES / "vision", SHAPES / "language", merge=4, references=unread)
    return MiniGPTProcessor.from_config(config, SHAPES / "language")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=7, counts={"train": 200, "validation": 10, "test": 10})
    return folder


def counted(
    settings: Settings, stage: str, model_name: str, world: Path, processor: MiniGPTProcessor
) -> tuple[float, float]:
    """Counts the (text, supervised) tokens of the average sample of a stage's mixture."""
    training, rng = getattr(settings, stage)[model_name], random.Random(0)
    text = supervised = 0.0
    for name, weight in training.mixture.items():
        data = settings.sources["world"].datasets[name]
        parts = READERS[data.reader].files(
            str(world / str(data.root)), str(world / data.images) if data.images else None
        )
        good = [
            one
            for one in READERS[data.reader].records(parts)
            if not isinstance(one, RejectedRecord) and one.split == "train"
        ]
        rows = []
        for sample in rng.sample(good, min(SAMPLES, len(good))):
            try:
                talk = render(sample, rng, task=training.tasks.get(name))
            except ValueError:  # a planted flaw, which curation removes
                continue
            images = [Image.new("RGB", (64, 64))] if sample.images else []
            row = processor(images, [talk], format=training.format, labels=True)
            rows.append(
                (
                    row["input_ids"].shape[1] - processor.num_image_tokens * len(images),
                    int((row["labels"] != -100).sum()),
                )
            )
        share = weight / sum(training.mixture.values()) / len(rows)
        text += share * sum(row[0] for row in rows)
        supervised += share * sum(row[1] for row in rows)
    return text, supervised


@pytest.mark.parametrize(
    ("stage", "model_name"),
    [("pretrain", "minigpt4"), ("pretrain", "minigpt-v2"), ("multitask", "minigpt-v2"), ("instruct", "minigpt-v2")],
)
def test_average_row_matches_nominal_lengths(
    settings: Settings, world: Path, processor: MiniGPTProcessor, stage: str, model_name: str
) -> None:
    text, supervised = counted(settings, stage, model_name, world, processor)
    planned = mixture_lengths(settings, getattr(settings, stage)[model_name])
    assert planned.text == pytest.approx(text, rel=0.1)
    assert planned.supervised == pytest.approx(supervised, rel=0.2)
