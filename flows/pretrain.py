"""Aligns a system's fresh projection with its frozen bases, on curated captions."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import StageContext, run


def main(system: str | None, dry: bool = False) -> None:
    """The `pretrain` stage of a system."""
    run("pretrain", system, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Trains from fresh weights."""
    assert context.system is not None
    return train_stage(context, context.system, context.result("curate") / "manifest.json", weights=None)
