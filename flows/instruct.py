"""The `instruct` stage: instruction data, from the weights of the training stage before."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import run


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage of a model."""
    run("instruct", model_name, train_stage, dry=dry)
