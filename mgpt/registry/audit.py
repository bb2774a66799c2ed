"""Reports about the registry: what a version was made of, and whether anything was changed outside the promote
stage."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mgpt.registry.audit_log import AuditLog, DecisionRecord
from mgpt.registry.versions import CHAMPION, SCORES, WEIGHTS, Version, all_versions, find, model_names, versions
from mgpt.storage import Store
from mgpt.storage.weights import verify_weights
from mgpt.tracking.client import connect
from mgpt.tracking.lineage import BACKBONE, COMMIT, DATA, DIRTY, PARAMS, TEST_DATA

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Order of tags in `lineage`: code, settings, data, backbones, stages.
ORDER = (COMMIT, DIRTY, PARAMS, DATA, TEST_DATA, BACKBONE, "mgpt.")


def audit(store: Store, tracking_uri: str, model: str | None = None) -> list[str]:
    """Returns one sentence for each change made outside the promote stage; empty when there is none.

    Detected are: a champion alias moved by hand (now, or between two decisions), decisions removed or changed, versions
    registered by other means, and registered weights that are gone or altered. Every weights file is read.

    Args:
        model: one registered model; default: all.
    """
    client = connect(tracking_uri)
    names = [model] if model else model_names(client)
    return [finding for name in names for finding in _audit_model(client, store, name)]


def _audit_model(client: MlflowClient, store: Store, model: str) -> list[str]:
    audit_log, known = AuditLog(store, model), versions(client, model)
    records = audit_log.records()
    found = [*audit_log.broken_links(), *_past_moves_by_hand(model, records), *_move_by_hand(model, records, known)]
    return found + [finding for version in known for finding in _audit_version(version, store)]


def _move_by_hand(model: str, records: list[DecisionRecord], known: list[Version]) -> list[str]:
    decided = next((record.champion for record in reversed(records) if record.action != "rejected"), None)
    current = next((version.number for version in known if CHAMPION in version.aliases), None)
    if current == decided:
        return []
    return [
        f"{model}: {CHAMPION} is on {_name(current)}, but the last decision set {_name(decided)}: it was moved by hand"
    ]


def _past_moves_by_hand(model: str, records: list[DecisionRecord]) -> list[str]:
    """Compares the champion that each decision found with the one that the decision before it left."""
    found: list[str] = []
    expected: int | None = None
    for record in records:
        if record.before != expected:
            found.append(
                f"{model}: decision {record.number} found {_name(record.before)} as {CHAMPION}, but earlier "
                "decisions left "
                f"{_name(expected)}: it was moved by hand before {record.time}"
            )
        expected = record.champion
    return found


def _audit_version(version: Version, store: Store) -> list[str]:
    label = f"{version.model} version {version.number}"
    if WEIGHTS not in version.tags:
        return [f"{label} was not registered by the promote stage: its weights are unknown"]
    try:
        verify_weights(version.weights, store)
    except ValueError as error:
        return [f"{label}: {error}"]
    return []


def _name(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"


def lineage(store: Store, tracking_uri: str, reference: str) -> str:
    """Returns what a version was made of, as text: code, settings, data, backbones, stages with their MLflow runs,
    weights, and every decision about it.

    Args:
        reference: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    Raises:
        ValueError: there is no such version.
    """
    version = find(tracking_uri, reference)
    tags = {name: value for name, value in version.tags.items() if name not in (WEIGHTS, SCORES) and "\n" not in value}
    if WEIGHTS in version.tags:
        tags["weights"] = store.uri(version.weights.weights)
    width = max(map(len, tags), default=0)
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    lines = [f"{version.model} version {version.number}{aliases}, registered {_time(version.created)}"]
    lines += [f"  {name:<{width}}  {tags[name]}" for name in sorted(tags, key=_rank)]
    records = [record for record in AuditLog(store, version.model).records() if record.version == version.number]
    lines += [f"  {line}" for record in records for line in _decision(record)]
    commit = version.tags.get(COMMIT, "unknown")
    return "\n".join([*lines, f"to restore its checkout: git checkout {commit} && dvc checkout"])


def _decision(record: DecisionRecord) -> Iterable[str]:
    head = f"decision {record.number}, {record.time}, by {record.author}: {record.action}"
    yield f"{head}; champion after it: {_name(record.champion)}"
    yield from (f"  {reason}" for reason in record.reasons)


def _rank(name: str) -> tuple[int, str]:
    return next((position for position, start in enumerate(ORDER) if name.startswith(start)), len(ORDER)), name


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def overview(tracking_uri: str) -> str:
    """Returns a table of every version of every registered model: aliases, the last decision about it, time of
    registration."""
    known = all_versions(connect(tracking_uri))
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
