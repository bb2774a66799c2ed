"""The `describe` stage: the pretrained MiniGPT-4 describes images; repaired and filtered, that becomes its instruction
data.
"""

from __future__ import annotations

from flows.inputs import backbones
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage.names import DESCRIBING_MODEL, DESCRIPTIONS


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage."""
    run("describe", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Generates, repairs and filters descriptions."""
    with context.ray():
        from mgpt.captioning.describe import DescribeRequest, describe
        from mgpt.execution.batch_inference import generate_on_ray

        request = DescribeRequest(
            settings=context.section,
            store=context.store,
            curated=context.manifest("curate"),
            backbones=backbones(context, DESCRIBING_MODEL),
            weights=context.weights()["pretrain"],
            folder=context.store.uri(DESCRIPTIONS, context.fingerprint),
            out=context.out,
        )
        with context.work("describe"):
            result = describe(request, generate_on_ray(request.settings.generation, print_progress))
    context.tracker.log_artifact(context.out / "review.csv")
    return result.summary


def print_progress(done: int, total: int) -> None:
    """Prints how many images are described."""
    print(f"describe: {done} of {total} images", flush=True)
