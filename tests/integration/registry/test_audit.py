"""Audit and lineage of a registry: changes made outside the promote stage are found, origins are listed."""

import json

import pytest

from mgpt.registry.audit import audit, lineage, overview
from mgpt.registry.promotion import rollback
from mgpt.registry.versions import find
from mgpt.tracking.client import connect
from tests.fixtures.registry import MODEL


@pytest.fixture
def two(registry):
    """A registry whose champion is version 2, after version 1."""
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    return registry


def test_stage_and_rollback_leave_no_findings(two):
    two.promote(2, 0.1)
    rollback(MODEL, two.store, two.uri)
    assert audit(two.store, two.uri) == []
    assert audit(two.store, two.uri, "unknown") == []


def test_alias_moved_by_hand_is_found_before_and_after_next_decision(two):
    connect(two.uri).set_registered_model_alias(MODEL, "champion", "1")
    (finding,) = audit(two.store, two.uri)
    assert finding.startswith(f"{MODEL}: champion is on version 1, but the last decision set version 2")
    two.promote(2, 0.75)
    (finding,) = audit(two.store, two.uri)
    assert "decision 3 found version 1" in finding
    assert "left version 2" in finding


def test_removed_alias_is_found(two):
    connect(two.uri).delete_registered_model_alias(MODEL, "champion")
    (finding,) = audit(two.store, two.uri)
    assert finding.startswith(f"{MODEL}: champion is on no version, but the last decision set version 2")


def test_foreign_versions_altered_weights_and_decisions_are_found(two):
    connect(two.uri).create_model_version(MODEL, source="s3://no-such-bucket/weights")
    two.store.delete(two.weights_uri(1) + "/trainable.safetensors")
    record = two.store.list(two.store.uri("registry", MODEL))[0]
    two.store.write(record, json.dumps({**json.loads(two.store.read(record)), "reasons": []}).encode())
    findings = audit(two.store, two.uri, MODEL)
    assert len(findings) == 3
    assert f"decision 1 of {MODEL} was changed" in findings[0]
    assert findings[1].startswith(f"{MODEL} version 1: weights registered for {MODEL}: {two.weights_uri(1)}: ")
    assert "altered or added: trainable.safetensors" in findings[1]
    assert f"{MODEL} version 3 was not registered by the promote stage" in findings[2]


def test_missing_weights_are_found(two):
    two.store.delete(two.weights_uri(2))
    (finding,) = audit(two.store, two.uri)
    assert finding.startswith(f"{MODEL} version 2: weights registered for {MODEL}: {two.weights_uri(2)}: ")
    assert "gone" in finding


def test_lineage_lists_every_origin(two):
    text = lineage(two.store, two.uri, f"models:/{MODEL}@champion")
    version = find(two.uri, f"models:/{MODEL}@champion")
    assert text.startswith(f"{MODEL} version 2 (champion), registered 20")
    for value in (
        "git.commit",
        two.weights_uri(2),
        "mgpt.backbone.language.sha256",
        "mgpt.evaluate.fingerprint",
        "promoted; champion",
    ):
        assert value in text
    assert version.tags["mgpt.instruct.run"] in text


def test_overview_lists_versions_with_aliases(two):
    lines = overview(two.uri).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        [MODEL, "1", "-", "promoted"],
        [MODEL, "2", "champion", "promoted"],
    ]


def test_overview_of_empty_registry(mlflow_uri):
    assert "no model is registered" in overview(mlflow_uri)
