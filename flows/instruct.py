"""The last training: MiniGPT-4 on its own mended descriptions, MiniGPT-v2 with instruction data added."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import StageContext, run

# Where each system's last training comes from: the stage of its data, and the stage (and system) of its weights.
ORIGIN = {"minigpt4": ("describe", ("pretrain", "minigpt4")), "minigpt-v2": ("curate", ("multitask", "minigpt-v2"))}


def main(system: str | None, dry: bool = False) -> None:
    """The `instruct` stage of a system."""
    run("instruct", system, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Trains on from the weights of the stage before."""
    assert context.system is not None
    data, before = ORIGIN[context.system]
    return train_stage(
        context, context.system, context.result(data) / "manifest.json", context.result(*before) / "weights"
    )
