"""Registers the trained model and moves `champion` to it if the gate holds."""

from __future__ import annotations

import json

from flows.inputs import backbones
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import write_atomic
from mgpt.storage.artifacts import RECORD


def main(model_name: str | None, dry: bool = False) -> None:
    """The `promote` stage of a model."""
    run("promote", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Registers the candidate, checks it against the promotion policy, and promotes or rejects it."""
    from mgpt.registry.promotion import promote
    from mgpt.registry.types import Candidate, ServingModel
    from mgpt.serving.registration import PARAMETERS, PYFUNC_CODE, smoke_test

    assert context.model_name is not None
    evaluated = context.result("evaluate", context.model_name)
    record = json.loads((evaluated / RECORD).read_text(encoding="utf-8"))
    lineage = record["lineage"] | {record["name"]: record["fingerprint"]}
    candidate = Candidate(
        model_name=context.model_name,
        weights=context.result("instruct", context.model_name) / "weights",
        metrics=evaluated / "metrics.json",
        data=context.result("curate") / "manifest.json",
        backbones=backbones(context, context.model_name),
        stages={name.partition("@")[0]: fingerprint for name, fingerprint in lineage.items()},
    )
    serving = ServingModel(PYFUNC_CODE, PARAMETERS, smoke_test)
    with context.work("promote"):
        decision = promote(candidate, context.section, context.store, context.tracker, serving, context.project)
    write_atomic(
        context.out / "decision.json", (json.dumps(decision.as_dict(), indent=1, sort_keys=True) + "\n").encode()
    )
    return {"decision": decision.text()}
