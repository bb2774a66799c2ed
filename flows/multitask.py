"""The `multitask` stage: fine-grained tasks, balanced, from the pretrained weights."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import run


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage of a model."""
    run("multitask", model_name, train_stage, dry=dry)
