"""`mgpt models`, `rollback`, `audit` and `lineage`: the model registry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from mgpt.cli.console import print_table, print_wrapped
from mgpt.cli.project import project_store, tracking_errors, tracking_uri

DECISION_TAG = "mgpt.decision"


def models() -> None:
    """List registered versions with their aliases and decisions."""
    from mgpt.registry.versions import all_versions
    from mgpt.tracking.client import connect

    uri = tracking_uri()
    with tracking_errors():
        versions = all_versions(connect(uri))
    if not versions:
        print(f"no model is registered in {uri}; the promote stage registers one")
        return
    rows = [
        [one.model, one.number, " ".join(one.aliases) or "-", one.tags.get(DECISION_TAG, "-"), _time(one.created)]
        for one in versions
    ]
    print_table(["model", "version", "aliases", "decision", "registered"], rows)


def rollback(
    model: Annotated[str, typer.Argument(help="For instance minigpt-v2.")],
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")] = "",
) -> None:
    """Make the champion's predecessor champion again."""
    from mgpt.registry.promotion import rollback as roll_back

    with tracking_errors():
        print_wrapped(roll_back(model, project_store(), tracking_uri(), reason).text())


def audit(model: Annotated[str | None, typer.Argument(help="One model; all by default.")] = None) -> None:
    """Report changes made outside the promote stage; exits with code 1 where there are any."""
    from mgpt.registry.audit import audit as findings_of

    with tracking_errors():
        findings = findings_of(project_store(), tracking_uri(), model)
    print("\n".join(findings) or "the registry is unchanged since the promote stage")
    if findings:
        raise typer.Exit(1)


def lineage(
    model: Annotated[str, typer.Argument(help="A model's champion (minigpt-v2), or a version (models:/minigpt-v2/3).")],
) -> None:
    """Print what a version was made of, and every decision about it."""
    from mgpt.registry.audit import lineage as lineage_of

    reference = model if model.startswith("models:/") else f"models:/{model}@champion"
    with tracking_errors():
        print(lineage_of(project_store(), tracking_uri(), reference))


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
