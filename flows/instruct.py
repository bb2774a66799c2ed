"""The last training: MiniGPT-4 on its own mended descriptions, MiniGPT-v2 with instruction data added."""

from __future__ import annotations

from flows.training import train_stage
from mgpt.pipeline.runner import StageContext, run

# Where each model's last training comes from: the stage of its data, and the stage (and model) of its weights.
ORIGIN = {"minigpt4": ("describe", ("pretrain", "minigpt4")), "minigpt-v2": ("curate", ("multitask", "minigpt-v2"))}


def main(model_name: str | None, dry: bool = False) -> None:
    """The `instruct` stage of a model."""
    run("instruct", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Trains on from the weights of the stage before."""
    assert context.model_name is not None
    data, before = ORIGIN[context.model_name]
    return train_stage(
        context, context.model_name, context.result(data) / "manifest.json", context.result(*before) / "weights"
    )
