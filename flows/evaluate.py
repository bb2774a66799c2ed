"""Held-out scores of every checkpoint of a system, with a grid of pictures."""

from __future__ import annotations

from flows.inputs import bases
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import Manifest


def main(system: str | None, dry: bool = False) -> None:
    """The `evaluate` stage of a system."""
    run("evaluate", system, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Asks, scores, draws."""
    assert context.system is not None
    stages = [name for name in context.section.checkpoints if name != "untrained"]
    with context.ray():
        from mgpt.evaluation import EvaluateRequest, evaluate
        from mgpt.execution.batch_inference import answer_on_ray

        request = EvaluateRequest(
            system=context.system,
            settings=context.section,
            store=context.store,
            curated=Manifest.load(context.result("curate") / "manifest.json"),
            bases=bases(context, context.system),
            checkpoints={name: context.result(name, context.system) / "weights" for name in stages},
            out=context.out,
        )
        with context.work("evaluate"):
            evaluation = evaluate(request, answer_on_ray(request.settings.generation, report))
    last = evaluation.scores[context.section.checkpoints[-1]]
    context.tracker.log_metrics({name: score.value for name, score in last.items()})
    context.tracker.log_artifact(context.out)
    return {"scores": (context.out / "scores.txt").read_text(encoding="utf-8")}


def report(done: int, total: int) -> None:
    """Progress."""
    print(f"evaluate: {done} of {total} questions", flush=True)
