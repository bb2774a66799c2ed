"""Registers a trained model, promotes it to champion if the promotion policy allows, and rolls a promotion back.

The alias `champion` moves only here. Every decision and its reasons go to the audit log (append-only, in the store) and
to MLflow; the caller prints them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.config.registry import GateSettings
from mgpt.registry.audit_log import AuditLog
from mgpt.registry.policy import Scores, check_scores, parse_scores, read_scores
from mgpt.registry.types import Candidate, Check, Decision, ServingModel
from mgpt.registry.versions import CHAMPION, SCORES, Version, champion, register, versions
from mgpt.storage import Store
from mgpt.storage.types import WeightsReference
from mgpt.storage.weights import store_weights, verify_weights
from mgpt.tracking.client import connect
from mgpt.tracking.lineage import TEST_DATA, backbone_tags, code_tags, data_tags, read_backbones, stage_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mgpt.tracking.runs import Tracker

REQUIRED = ("trainable.safetensors", "config.json")
DECISION, PREVIOUS, REASONS = "mgpt.decision", "mgpt.previous_champion", "mgpt.reasons"


def promote(
    candidate: Candidate,
    policy: GateSettings,
    store: Store,
    tracker: Tracker,
    serving: ServingModel,
    project: Path | None = None,
) -> Decision:
    """Registers the candidate as a model version, and moves `champion` to it when every check of the policy passes.

    The same weights never make a second version. When they are champion already they stay so, and nothing is recorded
    twice.

    Args:
        serving: the pyfunc code to register and the smoke test, see `ServingModel`.
        project: the project's folder, from which git and params.yaml are read; default: the current folder.

    Raises:
        ValueError: weights, metrics or manifest are missing or damaged, or another process decided at the same moment.
            The alias does not move.
    """
    scores = read_scores(candidate.metrics, candidate.checkpoint)
    data = data_tags(candidate.data)
    weights = _store(candidate, store)
    client = connect(tracker.tracking_uri)
    tags = {
        **code_tags(project or Path.cwd()),
        **data,
        **backbone_tags(candidate.weights),
        **stage_tags(client, candidate.stages),
        SCORES: json.dumps({name: asdict(score) for name, score in scores.items()}),
    }
    number = register(tracker, weights, tags, serving)
    current = champion(client, candidate.model_name)
    audit_log = AuditLog(store, candidate.model_name)
    checks = _policy_checks(scores, data[TEST_DATA], current, number, audit_log, policy)
    checks.append(_smoke_check(weights, store, serving, policy.smoke_prompt))
    before = current.number if current else None
    if all(check.passed for check in checks):
        decision = Decision(candidate.model_name, number, "promoted", number, before, checks)
    else:
        decision = Decision(candidate.model_name, number, "rejected", before, before, checks)
    _record(client, audit_log, decision, tracker)
    return decision


def rollback(model: str, store: Store, tracking_uri: str, reason: str = "") -> Decision:
    """Moves `champion` back to the version that had it before, and records that.

    A version that was rolled back is not promoted again unless the policy allows it (`GateSettings.rolled_back`).

    Raises:
        ValueError: there is no earlier champion, its weights are gone or altered, or the alias was moved by hand (see
            `audit`).
    """
    client, audit_log = connect(tracking_uri), AuditLog(store, model)
    past, current = audit_log.promotions(), champion(client, model)
    if not past or past[-1].before is None:
        raise ValueError(f"{model} has no earlier champion to go back to; `mgpt models` lists its versions")
    promoted, target = past[-1].version, past[-1].before
    if current is None or current.number != promoted:
        found = f"version {current.number}" if current else "no version"
        raise ValueError(
            f"{model}: {CHAMPION} is on {found}, but the last decision set version {promoted}: it was moved by hand; "
            "set it back"
        )
    previous = next((version for version in versions(client, model) if version.number == target), None)
    if previous is None:
        raise ValueError(
            f"{model} version {target}, the champion before version {promoted}, was deleted; there is nothing to "
            "roll back to"
        )
    verify_weights(previous.weights, store)
    check = Check("rollback", True, reason or f"requested; version {promoted} was champion")
    decision = Decision(model, promoted, "rolled back", target, promoted, [check])
    audit_log.append("rolled back", promoted, before=promoted, champion=target, reasons=[check.reason])
    client.set_registered_model_alias(model, CHAMPION, str(target))
    client.set_model_version_tag(model, str(promoted), DECISION, "rolled back")
    return decision


def _store(candidate: Candidate, store: Store) -> WeightsReference:
    """Stores the weights under their digest; backbones that the candidate does not name are where the weights' config
    says."""
    missing = [name for name in REQUIRED if not (candidate.weights / name).is_file()]
    if missing:
        raise ValueError(
            f"{candidate.weights}: {', '.join(missing)} not found, so there is no model to register; run the "
            "instruct stage first"
        )
    recorded = {
        name: backbone["uri"] for name, backbone in read_backbones(candidate.weights).items() if backbone.get("uri")
    }
    return store_weights(candidate.weights, candidate.model_name, {**recorded, **candidate.backbones}, store)


def _policy_checks(
    scores: Scores,
    test_data: str,
    current: Version | None,
    number: int,
    audit_log: AuditLog,
    policy: GateSettings,
) -> list[Check]:
    """Checks scores, comparability with the champion, and earlier rollbacks of version `number`."""
    other = current if current is not None and current.number != number else None
    comparable = other is not None and other.tags.get(TEST_DATA) == test_data
    champion_scores = parse_scores(json.loads(other.tags[SCORES])) if other is not None and comparable else None
    checks = check_scores(scores, champion_scores, policy)
    if other is not None and not comparable:
        reason = (
            f"champion version {other.number} was evaluated on other test data, so the two cannot be compared; "
            "evaluate the "
            "champion on the new data, or set other_test_data: true for this promotion"
        )
        checks.append(Check("same test data", policy.other_test_data, reason))
    if number in audit_log.rolled_back():
        reason = f"version {number} was rolled back; train another one, or set rolled_back: true to allow it again"
        checks.append(Check("not rolled back", policy.rolled_back, reason))
    return checks


def _smoke_check(weights: WeightsReference, store: Store, serving: ServingModel, prompt: str) -> Check:
    """Generates one answer with the registered model, loaded as a user loads it: weights and backbones verified."""
    try:
        text = serving.answer(weights, store, prompt).strip()
    except (ValueError, OSError) as error:
        return Check("smoke prediction", False, f"no answer to {prompt!r}: {error}")
    return Check("smoke prediction", bool(text), f"the answer to {prompt!r} is {text[:80]!r}")


def _record(client: MlflowClient, audit_log: AuditLog, decision: Decision, tracker: Tracker) -> None:
    """Writes the audit log first and the alias second: after a crash in between, the same command moves the alias as
    decided."""
    if not _is_recorded(audit_log, decision):
        audit_log.append(
            decision.action,
            decision.version,
            before=decision.before,
            champion=decision.champion,
            reasons=decision.reasons,
            run=tracker.run_id,
        )
    number = str(decision.version)
    tags: Mapping[str, str] = {DECISION: decision.action, REASONS: "\n".join(decision.reasons)}
    if decision.promoted and decision.before != decision.version:
        tags = {**tags, PREVIOUS: str(decision.before or "none")}
        client.set_registered_model_alias(decision.model, CHAMPION, number)
    for key, value in tags.items():
        client.set_model_version_tag(decision.model, number, key, value)
    tracker.set_tags({DECISION: decision.action, "mgpt.version": number})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "decision.json"
        path.write_text(json.dumps(decision.as_dict(), indent=1) + "\n", encoding="utf-8")
        tracker.log_artifact(path)


def _is_recorded(audit_log: AuditLog, decision: Decision) -> bool:
    """Returns whether the log holds this decision: the same decision last, or a champion that stays champion."""
    past, promotions = audit_log.records(), audit_log.promotions()
    if past:
        last = past[-1]
        if (last.action, last.version, last.reasons) == (decision.action, decision.version, decision.reasons):
            return True
    stays = decision.promoted and decision.before == decision.version
    return stays and bool(promotions) and promotions[-1].version == decision.version
