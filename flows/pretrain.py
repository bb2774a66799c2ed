"""Aligns a model's fresh projection with its frozen backbones, on curated captions."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import StageContext, run


def main(model_name: str | None, dry: bool = False) -> None:
    """The `pretrain` stage of a model."""
    run("pretrain", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Trains from fresh weights."""
    assert context.model_name is not None
    return train_stage(context, context.model_name, context.result("curate") / "manifest.json", weights=None)
