"""The pretrained MiniGPT-4 describes images; what is mended and survives becomes its instruction data."""

from __future__ import annotations

from flows.inputs import backbones
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import Manifest

SYSTEM = "minigpt4"


def main(model_name: str | None, dry: bool = False) -> None:
    """The `describe` stage."""
    run("describe", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Writes, mends, filters."""
    with context.ray():
        from mgpt.captioning.describe import DescribeRequest, describe
        from mgpt.execution.batch_inference import generate_on_ray

        request = DescribeRequest(
            settings=context.section,
            store=context.store,
            curated=Manifest.load(context.result("curate") / "manifest.json"),
            backbones=backbones(context, SYSTEM),
            weights=context.result("pretrain", SYSTEM) / "weights",
            folder=context.store.uri("described", context.fingerprint),
            out=context.out,
        )
        with context.work("describe"):
            result = describe(request, generate_on_ray(request.settings.generation, report))
    context.tracker.log_artifact(context.out / "review.csv")
    return result.summary


def report(done: int, total: int) -> None:
    """Progress."""
    print(f"describe: {done} of {total} images", flush=True)
