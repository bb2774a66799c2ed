"""MiniGPT-v2's second stage: fine-grained tasks, balanced."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import StageContext, run


def main(model_name: str | None, dry: bool = False) -> None:
    """The `multitask` stage."""
    run("multitask", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Trains on from the pretrained weights."""
    assert context.model_name is not None
    weights = context.result("pretrain", context.model_name) / "weights"
    return train_stage(context, context.model_name, context.result("curate") / "manifest.json", weights)
