"""MiniGPT-v2's second stage: fine-grained tasks, balanced."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import StageContext, run


def main(system: str | None, dry: bool = False) -> None:
    """The `multitask` stage."""
    run("multitask", system, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Trains on from the pretrained weights."""
    assert context.system is not None
    weights = context.result("pretrain", context.system) / "weights"
    return train_stage(context, context.system, context.result("curate") / "manifest.json", weights)
