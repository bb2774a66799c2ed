"""Registers a trained model and decides whether it becomes champion; takes that back again.

The alias `champion` moves only here, and only when every check of the gate holds. What was decided, and why, goes to the decision journal
(append-only, in the store) and to MLflow, and the caller prints it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.config.registry import GateSettings
from mgpt.registry.audit_log import Action, Journal
from mgpt.registry.gates import Check, Score, judge, parse_scores, read_scores
from mgpt.registry.versions import (
    CHAMPION,
    SCORES,
    Recipe,
    Version,
    absolute_backbones,
    champion,
    register,
    store_weights,
    stored_manifest,
    versions,
)
from mgpt.storage import Store
from mgpt.tracking.client import connect
from mgpt.tracking.lineage import TEST_DATA, backbone_tags, code_tags, data_tags, stage_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mgpt.tracking.runs import Tracker

SMOKE_TOKENS = 32
DECISION, PREVIOUS, REASONS = "mgpt.decision", "mgpt.previous_champion", "mgpt.reasons"


@dataclass(frozen=True)
class Candidate:
    """A trained and evaluated model.

    weights: folder that `model.save_trainable` wrote. metrics: the evaluate stage's metrics file. data: the curate stage's manifest.
    stages: fingerprint of every stage the model went through, by stage name; their MLflow runs are looked up by it. backbones: folder or URI of
    each frozen base by name; those not named are looked for where the weights' config.json says. checkpoint: whose scores count.
    """

    model_name: str
    weights: Path
    metrics: Path
    data: Path
    stages: Mapping[str, str]
    backbones: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str = "instruct"


@dataclass(frozen=True)
class Decision:
    """What came of a version. `champion` and `before` are version numbers after and before it (None: none)."""

    model: str
    version: int
    action: Action
    champion: int | None
    before: int | None
    checks: list[Check]

    @property
    def promoted(self) -> bool:
        """Whether the version has the alias now."""
        return self.action == "promoted"

    @property
    def reasons(self) -> list[str]:
        """One line per check, those that do not hold first."""
        ordered = sorted(self.checks, key=lambda check: check.holds)
        return [f"{'holds' if check.holds else 'FAILS'} {check.name}: {check.reason}" for check in ordered]

    def text(self) -> str:
        """The decision as it is printed."""
        if self.promoted and self.before == self.version:
            head = f"{self.model} version {self.version} is champion already and keeps the gate"
        elif self.promoted:
            head = f"{self.model} version {self.version} is champion now (before: {f'version {self.before}' if self.before else 'none'})"
        else:
            now = f"version {self.champion}" if self.champion else "none"
            head = f"{self.model} version {self.version} is {self.action}; champion: {now}"
        return "\n".join([head, *(f"  {reason}" for reason in self.reasons)])

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def promote(
    candidate: Candidate, gates: GateSettings, store: Store, tracker: Tracker, project: Path | None = None
) -> Decision:
    """Registers the candidate as a model version, puts it through the gate, and moves `champion` when every check holds.

    The same weights never make a second version. A champion that the same weights already are stays; nothing is recorded twice.

    Raises:
        ValueError: weights, metrics or manifest are not there or damaged, or another process decided at the same moment. No alias moves.
    """
    folder = project or Path.cwd()
    scores = read_scores(candidate.metrics, candidate.checkpoint)
    data = data_tags(candidate.data)
    weights_uri, manifest = store_weights(candidate.weights, candidate.model_name, store)
    recipe = Recipe(candidate.model_name, weights_uri, manifest.digest, absolute_backbones(candidate.backbones))
    client = connect(tracker.tracking_uri)
    tags = {
        **code_tags(folder),
        **data,
        **backbone_tags(candidate.weights),
        **stage_tags(client, candidate.stages),
        SCORES: json.dumps({name: asdict(score) for name, score in scores.items()}),
    }
    number = register(tracker, recipe, tags)
    reigning = champion(client, candidate.model_name)
    journal = Journal(store, candidate.model_name)
    checks = _checks(scores, data[TEST_DATA], reigning, number, journal, gates)
    checks.append(_smoke(recipe, gates.smoke_prompt))
    decision = _decide(candidate.model_name, number, reigning, checks)
    _record(client, journal, decision, tracker)
    return decision


def rollback(model: str, store: Store, tracking_uri: str, reason: str = "") -> Decision:
    """Gives `champion` back to the version that had it before, and records that.

    What is rolled back does not come back by itself (`GateSettings.rolled_back`).

    Raises:
        ValueError: there is no earlier champion, its weights are gone or altered, or the alias was moved by hand (`audit` says to where).
    """
    client, journal = connect(tracking_uri), Journal(store, model)
    past, reigning = journal.promotions(), champion(client, model)
    if not past or past[-1].before is None:
        raise ValueError(f"{model} has no earlier champion to go back to; `mgpt models` lists its versions")
    current, target = past[-1].version, past[-1].before
    if reigning is None or reigning.number != current:
        found = f"version {reigning.number}" if reigning else "no version"
        raise ValueError(
            f"{model}: {CHAMPION} is on {found}, the last decision set version {current}: it was moved by hand; set it back"
        )
    before = next((version for version in versions(client, model) if version.number == target), None)
    if before is None:
        raise ValueError(
            f"{model} version {target}, champion before version {current}, was deleted; there is nothing to go back to"
        )
    stored_manifest(before.recipe)
    check = Check("rollback", True, reason or f"asked for; version {current} was champion")
    decision = Decision(model, current, "rolled back", target, current, [check])
    journal.append("rolled back", current, before=current, champion=target, reasons=[check.reason])
    client.set_registered_model_alias(model, CHAMPION, str(target))
    client.set_model_version_tag(model, str(current), DECISION, "rolled back")
    return decision


def _checks(
    scores: Mapping[str, Score],
    test_data: str,
    reigning: Version | None,
    number: int,
    journal: Journal,
    gates: GateSettings,
) -> list[Check]:
    rival = reigning if reigning is not None and reigning.number != number else None
    comparable = rival is not None and rival.tags.get(TEST_DATA) == test_data
    against = parse_scores(json.loads(rival.tags[SCORES])) if rival is not None and comparable else None
    checks = judge(scores, against, gates)
    if rival is not None and not comparable:
        fix = "measure the champion on the new data, or set other_test_data: true for this promotion"
        reason = (
            f"champion version {rival.number} was measured on other test data, so the two cannot be compared; {fix}"
        )
        checks.append(Check("same test data", gates.other_test_data, reason))
    if number in journal.rolled_back():
        reason = f"version {number} was rolled back; train another one, or set rolled_back: true to let it return"
        checks.append(Check("not rolled back", gates.rolled_back, reason))
    return checks


def _smoke(recipe: Recipe, prompt: str) -> Check:
    """One real answer of the registered model, loaded the way a user loads it: weights and backbones verified."""
    from mgpt.serving.images import sample_image
    from mgpt.serving.loading import load_registered

    try:
        answer = load_registered(recipe).answer(sample_image(), prompt, SMOKE_TOKENS)
    except (ValueError, OSError) as error:
        return Check("smoke prediction", False, f"{prompt!r} could not be answered: {error}")
    return Check("smoke prediction", bool(answer.text.strip()), f"{prompt!r} was answered {answer.text.strip()[:80]!r}")


def _decide(model: str, number: int, reigning: Version | None, checks: list[Check]) -> Decision:
    before = reigning.number if reigning else None
    if all(check.holds for check in checks):
        return Decision(model, number, "promoted", number, before, checks)
    return Decision(model, number, "held back", before, before, checks)


def _record(client: MlflowClient, journal: Journal, decision: Decision, tracker: Tracker) -> None:
    """Journal first, alias second: after a crash between the two, the same command brings the alias to what was decided."""
    if not _is_recorded(journal, decision):
        before, after = decision.before, decision.champion
        journal.append(
            decision.action,
            decision.version,
            before=before,
            champion=after,
            reasons=decision.reasons,
            run=tracker.run_id,
        )
    number = str(decision.version)
    tags = {DECISION: decision.action, REASONS: "\n".join(decision.reasons)}
    if decision.promoted and decision.before != decision.version:
        tags[PREVIOUS] = str(decision.before or "none")
        client.set_registered_model_alias(decision.model, CHAMPION, number)
    for key, value in tags.items():
        client.set_model_version_tag(decision.model, number, key, value)
    tracker.set_tags({DECISION: decision.action, "mgpt.version": number})
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "decision.json"
        path.write_text(json.dumps(decision.as_dict(), indent=1) + "\n", encoding="utf-8")
        tracker.log_artifact(path)


def _is_recorded(journal: Journal, decision: Decision) -> bool:
    """Whether the journal says so already: the same decision twice, or a champion that keeps its place."""
    past, promotions = journal.records(), journal.promotions()
    if past and (past[-1].action, past[-1].version, past[-1].reasons) == (
        decision.action,
        decision.version,
        decision.reasons,
    ):
        return True
    keeps = decision.promoted and decision.before == decision.version
    return keeps and bool(promotions) and promotions[-1].version == decision.version
