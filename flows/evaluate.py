"""The `evaluate` stage: held-out scores of every checkpoint of a model, and a page of images."""

from __future__ import annotations

from flows.inputs import backbones
from mgpt.pipeline.runner import StageContext, run


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage of a model."""
    run("evaluate", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Generates answers, scores them and draws some."""
    with context.ray():
        from mgpt.evaluation.stage import EvaluateRequest, evaluate
        from mgpt.execution.batch_inference import generate_on_ray
        from mgpt.reporting.visualize import GALLERY, write_gallery

        request = EvaluateRequest(
            model_name=context.model_name,
            settings=context.section,
            curated=context.manifest("curate"),
            backbones=backbones(context, context.model_name),
            checkpoints=context.weights(),
            out=context.out,
        )
        with context.work("evaluate"):
            evaluation = evaluate(request, generate_on_ray(request.settings.generation, print_progress))
            if request.settings.images:
                write_gallery(evaluation, request.settings.images, context.out / GALLERY)
    last = evaluation.scores[context.section.checkpoints[-1]]
    context.tracker.log_metrics({name: score.value for name, score in last.items()})
    context.tracker.log_artifact(context.out)
    return {"scores": (context.out / "scores.txt").read_text(encoding="utf-8")}


def print_progress(done: int, total: int) -> None:
    """Prints how many questions are answered."""
    print(f"evaluate: {done} of {total} questions", flush=True)
