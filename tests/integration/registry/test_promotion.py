"""Promotion with real weights, a real MLflow store and real loading."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas
import pytest

from mgpt.cli.main import main
from mgpt.config.registry import GateSettings
from mgpt.registry.audit_log import AuditLog
from mgpt.registry.promotion import rollback
from mgpt.registry.versions import champion, find, versions
from mgpt.storage import Store
from mgpt.storage.hashing import content_digest
from mgpt.tracking.client import connect
from tests.fixtures.project import ROOT
from tests.fixtures.registry import MODEL, write_scores

FLOOR = GateSettings(floors={"rec_accuracy": 0.6})


def numbers(registry):
    return [version.number for version in versions(connect(registry.uri), MODEL)]


def champion_number(registry):
    found = champion(connect(registry.uri), MODEL)
    return found.number if found else None


def test_promoting_twice_is_noop(registry):
    first = registry.promote(0, policy=FLOOR)
    second = registry.promote(0, policy=FLOOR)
    assert (first.action, first.champion, second.champion) == ("promoted", 1, 1)
    assert "already champion" in second.text()
    assert numbers(registry) == [1]
    assert [record.action for record in AuditLog(registry.store, MODEL).records()] == ["promoted"]


def test_tags_lead_back_to_every_origin(registry):
    registry.promote(0)
    tags = find(registry.uri, f"models:/{MODEL}@champion").tags
    assert tags["mgpt.instruct.fingerprint"] == "0123"
    assert tags["mgpt.instruct.run"] == registry.tracker("instruct", "0123").run_id
    assert {
        "git.commit",
        "params.sha256",
        "mgpt.data",
        "mgpt.test_data",
        "mgpt.backbone.vision.sha256",
    } <= set(tags)


def test_worse_candidate_is_rejected_and_rollback_restores_previous_champion(registry):
    registry.promote(0, 0.7)
    better = registry.promote(1, 0.72)
    worse = registry.promote(2, 0.5)
    assert (better.champion, better.before) == (2, 1)
    assert (worse.action, worse.champion, champion_number(registry)) == ("rejected", 2, 2)
    assert worse.text().splitlines()[0] == "minigpt-v2 version 3 is rejected; champion: version 2"
    assert "FAILED champion rec_accuracy" in worse.text()
    undone = rollback(MODEL, registry.store, registry.uri, "draws no boxes")
    assert (undone.action, undone.champion, champion_number(registry)) == ("rolled back", 1, 1)
    assert AuditLog(registry.store, MODEL).records()[-1].reasons == ["draws no boxes"]
    with pytest.raises(ValueError, match="no earlier champion"):
        rollback(MODEL, registry.store, registry.uri)


def test_rolled_back_version_returns_only_if_policy_allows(registry):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    rollback(MODEL, registry.store, registry.uri)
    assert registry.promote(1, 0.72).action == "rejected"
    assert registry.promote(1, 0.72, GateSettings(rolled_back=True)).champion == 2


def test_first_model_must_pass_floors(registry):
    decision = registry.promote(0, 0.5, FLOOR)
    assert (decision.action, decision.champion, champion_number(registry)) == ("rejected", None, None)
    assert numbers(registry) == [1]


def test_champion_on_other_test_data_is_not_compared(registry):
    registry.promote(0, 0.9)
    registry.write_data(16)
    rejected = registry.promote(1, 0.7)
    assert [check.name for check in rejected.checks if not check.passed] == ["same test data"]
    assert registry.promote(1, 0.7, GateSettings(other_test_data=True)).champion == 2


def test_missing_answers_reject(registry):
    candidate = registry.candidate(0)
    content = json.loads(candidate.metrics.read_text())
    content["scores"]["instruct"]["rec_accuracy"]["missing"] = 1
    candidate.metrics.write_text(json.dumps(content))
    assert registry.submit(candidate).action == "rejected"


def test_missing_weights_register_nothing(registry, tmp_path):
    for folder, message in (
        (tmp_path / "none", r"trainable\.safetensors, config\.json not found"),
        (registry.weights[0].parent, "not found"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.submit(replace(registry.candidate(0), weights=folder))
    assert numbers(registry) == []
    assert registry.store.list(registry.store.uri("registry")) == []


def test_weights_are_stored_once_by_content(registry):
    registry.promote(0)
    registry.promote(1, 0.72)
    weights = find(registry.uri, f"models:/{MODEL}/1").weights
    assert weights.digest == content_digest(registry.weights[0])
    assert weights.weights == f"content/{weights.digest}"
    stored = [uri for uri in registry.store.list(registry.store.root) if uri.endswith("trainable.safetensors")]
    assert sorted(stored) == sorted(f"{registry.weights_uri(number)}/trainable.safetensors" for number in (1, 2))


def test_altered_byte_is_refused_by_promote_load_and_rollback(registry, monkeypatch):
    monkeypatch.setenv("MGPT_STORAGE__ROOT", registry.store.root)
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    uri = f"{registry.weights_uri(1)}/trainable.safetensors"
    content = bytearray(registry.store.read(uri))
    content[-1] ^= 1
    registry.store.write(uri, bytes(content))
    with pytest.raises(ValueError, match="altered"):
        registry.promote(0, 0.7)
    with pytest.raises(ValueError, match="altered"):
        rollback(MODEL, registry.store, registry.uri)
    mlflow.set_tracking_uri(registry.uri)
    with pytest.raises(ValueError, match="altered"):
        mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    assert champion_number(registry) == 2


def test_wrong_backbone_fails_smoke_prediction(registry):
    backbones = json.loads((registry.weights[0] / "config.json").read_text())["backbones"]
    candidate = replace(registry.candidate(0), backbones={"vision": backbones["language"]["uri"]})
    decision = registry.submit(candidate)
    assert [check.name for check in decision.checks if not check.passed] == ["smoke prediction"]
    assert backbones["vision"]["sha256"] in decision.text()
    assert champion_number(registry) is None


def test_rollback_command(registry, monkeypatch, capsys):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    shutil.copyfile(ROOT / "params.yaml", registry.folder / "params.yaml")
    monkeypatch.chdir(registry.folder)
    monkeypatch.setenv("MGPT_STORAGE__ROOT", registry.store.root)
    monkeypatch.setenv("MGPT_TRACKING__URI", registry.uri)
    assert main(["rollback", MODEL, "--reason", "draws no boxes"]) == 0
    printed = capsys.readouterr().out
    assert "version 2 is rolled back; champion: version 1" in printed
    assert "draws no boxes" in printed
    assert champion_number(registry) == 1
    assert main(["rollback", MODEL]) == 2
    assert "no earlier champion" in capsys.readouterr().err


def test_alias_moved_by_hand_stops_rollback(registry):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    connect(registry.uri).set_registered_model_alias(MODEL, "champion", "1")
    with pytest.raises(ValueError, match="moved by hand"):
        rollback(MODEL, registry.store, registry.uri)


def test_decision_is_logged_with_the_run(registry):
    decision = registry.promote(0)
    client, run_id = connect(registry.uri), registry.tracker("promote", "promote-1").run_id
    (registry.folder / "back").mkdir()
    downloaded = Path(client.download_artifacts(run_id, "decision.json", str(registry.folder / "back")))
    assert json.loads(downloaded.read_text()) == json.loads(json.dumps(decision.as_dict()))
    assert client.get_run(run_id).data.tags["mgpt.decision"] == "promoted"


def test_mlflow_receives_only_kilobytes(registry):
    registry.promote(0)
    sent = [file for file in (registry.folder / "artifacts").rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in sent) < 50_000
    assert "weights.json" in {file.name for file in sent}
    assert not {"trainable.safetensors", "config.json"} & {file.name for file in sent}


def test_scores_of_other_checkpoint_do_not_count(registry):
    write_scores(registry.folder / "metrics.json")
    candidate = replace(registry.candidate(0), checkpoint="pretrain")
    with pytest.raises(ValueError, match="'pretrain', only of untrained, instruct"):
        registry.submit(candidate)


def test_bucket_as_store(registry, bucket, monkeypatch):
    monkeypatch.setenv("MGPT_STORAGE__ROOT", f"{bucket}/root")
    registry.store = Store(f"{bucket}/root")
    registry.write_data(12)
    assert registry.promote(0).champion == 1
    assert registry.weights_uri(1).startswith(f"{bucket}/root/content/")
    mlflow.set_tracking_uri(registry.uri)
    table = pandas.DataFrame([{"image": b"no image", "prompt": "[refer] the circle"}])
    with pytest.raises(ValueError, match="question 0: image bytes: not a readable image"):
        mlflow.pyfunc.load_model(f"models:/{MODEL}@champion").predict(table)
