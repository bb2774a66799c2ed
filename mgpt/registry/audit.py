"""Looks at the registry from outside: what a version was made of, and whether anything was changed past the promote stage."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mgpt.registry.audit_log import Journal, Record
from mgpt.registry.versions import CHAMPION, RECIPE, SCORES, Version, find, models, stored_manifest, versions
from mgpt.storage import Store
from mgpt.tracking.client import connect
from mgpt.tracking.lineage import COMMIT, DIRTY, PARAMS

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Tags in the order that a reader asks: which code, which settings, which data, which backbones, which stages.
ORDER = (COMMIT, DIRTY, PARAMS, "mgpt.data", "mgpt.test_data", "mgpt.base.", "mgpt.")


def audit(store: Store, tracking_uri: str, model: str | None = None) -> list[str]:
    """What is not as the promote stage left it, one sentence each; empty when all is well.

    Found are: a champion alias moved by hand (now, or between two decisions), decisions removed or changed, versions made past the promote
    stage, and registered weights that are gone or altered. Every weights file is read.

    Args:
        model: one registered model; all by default.
    """
    client = connect(tracking_uri)
    names = [model] if model else sorted(known.name for known in client.search_registered_models(max_results=1000))
    return [finding for name in names for finding in _audit_model(client, store, name)]


def _audit_model(client: MlflowClient, store: Store, model: str) -> list[str]:
    journal, known = Journal(store, model), versions(client, model)
    records = journal.records()
    found = [*journal.broken_links(), *_moves_by_hand(model, records), *_alias_now(model, records, known)]
    return found + [finding for version in known for finding in _audit_version(version)]


def _alias_now(model: str, records: list[Record], known: list[Version]) -> list[str]:
    decided = next((record.champion for record in reversed(records) if record.action != "held back"), None)
    current = next((version.number for version in known if CHAMPION in version.aliases), None)
    if current == decided:
        return []
    return [
        f"{model}: {CHAMPION} is on {_name(current)}, but the last decision set {_name(decided)}: it was moved by hand"
    ]


def _moves_by_hand(model: str, records: list[Record]) -> list[str]:
    """A decision notes which version it found as champion; that must be the one that the decision before it left."""
    found: list[str] = []
    expected: int | None = None
    for record in records:
        if record.before != expected:
            left = f"decision {record.number} found {_name(record.before)} where the ones before it had left {_name(expected)}"
            found.append(f"{model}: {left}: {CHAMPION} was moved by hand before {record.time}")
        expected = record.champion
    return found


def _audit_version(version: Version) -> list[str]:
    label = f"{version.model} version {version.number}"
    if RECIPE not in version.tags:
        return [f"{label} was not registered by the promote stage: nothing is known of its weights"]
    try:
        stored_manifest(version.recipe)
    except ValueError as error:
        return [f"{label}: {error}"]
    return []


def _name(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"


def trace(store: Store, tracking_uri: str, reference: str) -> str:
    """What a model was made of, as text: code, settings, data, backbones, stages with their MLflow runs, weights, and every decision about it.

    Args:
        reference: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    Raises:
        ValueError: there is no such version.
    """
    version = find(tracking_uri, reference)
    shown = sorted(
        (name for name in version.tags if name not in (RECIPE, SCORES) and "\n" not in version.tags[name]), key=_rank
    )
    width = max((len(name) for name in shown), default=0)
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    lines = [f"{version.model} version {version.number}{aliases}, registered {_time(version.created)}"]
    lines += [f"  {name:<{width}}  {version.tags[name]}" for name in shown]
    lines += [f"  {'weights':<{width}}  {version.recipe.weights}"] if RECIPE in version.tags else []
    records = [record for record in Journal(store, version.model).records() if record.version == version.number]
    lines += [f"  {line}" for record in records for line in _decision(record)]
    commit = version.tags.get(COMMIT, "unknown")
    return "\n".join([*lines, f"the checkout that made it: git checkout {commit} && dvc checkout"])


def _decision(record: Record) -> Iterable[str]:
    yield f"decision {record.number}, {record.time}, by {record.author}: {record.action}; champion after it: {_name(record.champion)}"
    yield from (f"  {reason}" for reason in record.reasons)


def _rank(name: str) -> tuple[int, str]:
    return next((position for position, start in enumerate(ORDER) if name.startswith(start)), len(ORDER)), name


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def overview(tracking_uri: str) -> str:
    """Every version of every registered model, a line each: aliases, the decision about it, when, and its weights' digest."""
    known = models(connect(tracking_uri))
    if not known:
        return f"no model is registered in {tracking_uri}; the promote stage registers one"
    table = [("model", "version", "aliases", "decision", "registered"), *map(_row, known)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def _row(version: Version) -> tuple[str, str, str, str, str]:
    aliases, decision = " ".join(version.aliases) or "-", version.tags.get("mgpt.decision", "-")
    return version.model, str(version.number), aliases, decision, _time(version.created)
