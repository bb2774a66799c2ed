import json

import pytest

from mgpt.registry.audit import audit, overview, trace
from mgpt.registry.promotion import rollback
from mgpt.registry.versions import find
from mgpt.tracking.client import connect
from tests.fixtures.registry import SYSTEM


@pytest.fixture
def two(registry):
    """A registry with champion 2 after champion 1."""
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    return registry


def test_what_the_stage_did_has_no_findings(two):
    two.promote(2, 0.1)
    rollback(SYSTEM, two.store, two.uri)
    assert audit(two.store, two.uri) == []
    assert audit(two.store, two.uri, "unknown") == []


def test_an_alias_moved_by_hand_is_found_now_and_after_the_next_decision(two):
    connect(two.uri).set_registered_model_alias(SYSTEM, "champion", "1")
    assert audit(two.store, two.uri) == [
        f"{SYSTEM}: champion is on version 1, but the last decision set version 2: it was moved by hand"
    ]
    two.promote(2, 0.75)
    (finding,) = audit(two.store, two.uri)
    assert "decision 3 found version 1 where the ones before it had left version 2" in finding


def test_an_alias_taken_away_is_found(two):
    connect(two.uri).delete_registered_model_alias(SYSTEM, "champion")
    assert audit(two.store, two.uri) == [
        f"{SYSTEM}: champion is on no version, but the last decision set version 2: it was moved by hand"
    ]


def test_versions_made_by_hand_altered_weights_and_decisions_are_found(two):
    connect(two.uri).create_model_version(SYSTEM, source="s3://no-such-bucket/weights")
    two.store.delete(find(two.uri, f"models:/{SYSTEM}/1").recipe.weights + "/trainable.safetensors")
    record = two.store.list(two.store.uri("registry", SYSTEM))[0]
    two.store.write(record, json.dumps({**json.loads(two.store.read(record)), "reasons": []}).encode())
    findings = "\n".join(audit(two.store, two.uri, SYSTEM))
    assert f"{SYSTEM} version 3 was not registered by the promote stage" in findings
    assert "trainable.safetensors: gone" in findings
    assert f"decision 1 of {SYSTEM} was changed after it was written" in findings
    assert len(audit(two.store, two.uri, SYSTEM)) == 3


def test_a_trace_leads_back_to_everything(two):
    text = trace(two.store, two.uri, f"models:/{SYSTEM}@champion")
    version = find(two.uri, f"models:/{SYSTEM}@champion")
    assert text.startswith(f"{SYSTEM} version 2 (champion), registered 20")
    for value in (
        "git.commit",
        version.recipe.weights,
        "mgpt.base.language.sha256",
        "mgpt.evaluate.fingerprint",
        "promoted; champion",
    ):
        assert value in text
    assert version.tags["mgpt.instruct.run"] in text


def test_the_overview_lists_versions_with_aliases(two):
    lines = overview(two.uri).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        [SYSTEM, "1", "-", "promoted"],
        [SYSTEM, "2", "champion", "promoted"],
    ]


def test_an_empty_registry_says_so(mlflow_uri):
    assert "no model is registered" in overview(mlflow_uri)
