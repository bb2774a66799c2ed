"""The `promote` stage: registers the trained model, and moves `champion` to it where the gate holds."""

from __future__ import annotations

import json

from flows.inputs import backbones
from mgpt.pipeline.runner import StageContext, run
from mgpt.pipeline.stages import DATA_FILE
from mgpt.storage import write_atomic
from mgpt.storage.names import METRICS_FILE, RUN_FILE


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage of a model."""
    run("promote", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Registers the candidate, checks it against the promotion policy, and promotes or rejects it."""
    from mgpt.registry.promotion import promote
    from mgpt.registry.types import Candidate, ServingModel
    from mgpt.serving.registration import PARAMETERS, PYFUNC_CODE, smoke_test

    evaluated = context.result("evaluate", context.model_name)
    record = json.loads((evaluated / RUN_FILE).read_text(encoding="utf-8"))
    lineage = record["lineage"] | {record["name"]: record["fingerprint"]}
    context.manifest("curate").save(context.out / DATA_FILE)
    stage, weights = list(context.weights().items())[-1]
    candidate = Candidate(
        model_name=context.model_name,
        weights=weights,
        metrics=evaluated / METRICS_FILE,
        data=context.out / DATA_FILE,
        backbones=backbones(context, context.model_name),
        stages={name.partition("@")[0]: fingerprint for name, fingerprint in lineage.items()},
        checkpoint=stage,
    )
    serving = ServingModel(PYFUNC_CODE, PARAMETERS, smoke_test)
    with context.work("promote"):
        decision = promote(candidate, context.section, context.store, context.tracker, serving, context.project)
    content = json.dumps(decision.as_dict(), indent=1, sort_keys=True) + "\n"
    write_atomic(context.out / "decision.json", content.encode())
    return {"decision": decision.text()}
