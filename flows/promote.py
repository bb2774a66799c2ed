"""Registers the trained model and moves `champion` to it if the gate holds."""

from __future__ import annotations

import json

from flows.inputs import bases
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import write_atomic
from mgpt.storage.artifacts import RECORD


def main(system: str | None, dry: bool = False) -> None:
    """The `promote` stage of a system."""
    run("promote", system, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Registers, judges, decides."""
    from mgpt.registry.promotion import Candidate, promote

    assert context.system is not None
    evaluated = context.result("evaluate", context.system)
    record = json.loads((evaluated / RECORD).read_text(encoding="utf-8"))
    lineage = record["lineage"] | {record["name"]: record["identity"]}
    candidate = Candidate(
        system=context.system,
        weights=context.result("instruct", context.system) / "weights",
        metrics=evaluated / "metrics.json",
        data=context.result("curate") / "manifest.json",
        bases=bases(context, context.system),
        stages={name.partition("@")[0]: identity for name, identity in lineage.items()},
    )
    with context.work("promote"):
        decision = promote(candidate, context.section, context.store, context.tracker, context.project)
    write_atomic(
        context.out / "decision.json", (json.dumps(decision.as_dict(), indent=1, sort_keys=True) + "\n").encode()
    )
    return {"decision": decision.text()}
