"""Held-out scores of every checkpoint of a model, with a grid of images."""

from __future__ import annotations

from flows.inputs import backbones
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import Manifest


def main(model_name: str | None, dry: bool = False) -> None:
    """The `evaluate` stage of a model."""
    run("evaluate", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Asks, scores, draws."""
    assert context.model_name is not None
    stages = [name for name in context.section.checkpoints if name != "untrained"]
    with context.ray():
        from mgpt.evaluation import EvaluateRequest, evaluate
        from mgpt.execution.batch_inference import generate_on_ray

        request = EvaluateRequest(
            model_name=context.model_name,
            settings=context.section,
            store=context.store,
            curated=Manifest.load(context.result("curate") / "manifest.json"),
            backbones=backbones(context, context.model_name),
            checkpoints={name: context.result(name, context.model_name) / "weights" for name in stages},
            out=context.out,
        )
        with context.work("evaluate"):
            evaluation = evaluate(request, generate_on_ray(request.settings.generation, report))
    last = evaluation.scores[context.section.checkpoints[-1]]
    context.tracker.log_metrics({name: score.value for name, score in last.items()})
    context.tracker.log_artifact(context.out)
    return {"scores": (context.out / "scores.txt").read_text(encoding="utf-8")}


def report(done: int, total: int) -> None:
    """Progress."""
    print(f"evaluate: {done} of {total} questions", flush=True)
