"""The `pretrain` stage: aligns a newly initialised projection with a model's frozen backbones."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import run


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage of a model."""
    run("pretrain", model_name, train_stage, dry=dry)
