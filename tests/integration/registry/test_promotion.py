"""Promotion with real weights, a real MLflow store and real loading."""

import json
import shutil
from dataclasses import replace

import mlflow
import pandas
import pytest

from mgpt.cli.main import main
from mgpt.config.registry import GateSettings
from mgpt.registry.audit_log import Journal
from mgpt.registry.promotion import promote, rollback
from mgpt.registry.versions import champion, find, versions
from mgpt.tracking.client import connect
from tests.fixtures.project import ROOT
from tests.fixtures.registry import SYSTEM, write_scores

FLOOR = GateSettings(floors={"rec_accuracy": 0.6})


def numbers(registry):
    return [version.number for version in versions(connect(registry.uri), SYSTEM)]


def reigning(registry):
    found = champion(connect(registry.uri), SYSTEM)
    return found.number if found else None


def test_the_chain_and_a_second_run_of_it_leave_one_version_with_the_alias(registry):
    first = registry.promote(0, gates=FLOOR)
    again = registry.promote(0, gates=FLOOR)
    assert (first.action, first.champion, again.champion) == ("promoted", 1, 1)
    assert "is champion already" in again.text()
    assert numbers(registry) == [1]
    assert [record.action for record in Journal(registry.store, SYSTEM).records()] == ["promoted"]
    tags = find(registry.uri, f"models:/{SYSTEM}@champion").tags
    assert tags["mgpt.instruct.fingerprint"] == "0123"
    assert tags["mgpt.instruct.run"] == registry.tracker("instruct", "0123").run_id
    assert {
        "git.commit",
        "params.sha256",
        "mgpt.data",
        "mgpt.test_data",
        "mgpt.base.vision.sha256",
    } <= set(tags)


def test_a_worse_candidate_is_held_back_and_a_rollback_restores_the_champion_before(registry):
    registry.promote(0, 0.7)
    better = registry.promote(1, 0.72)
    worse = registry.promote(2, 0.5)
    assert (better.champion, better.before) == (2, 1)
    assert (worse.action, worse.champion, reigning(registry)) == ("held back", 2, 2)
    assert worse.text().splitlines()[0] == "minigpt-v2 version 3 is held back; champion: version 2"
    assert "FAILS champion rec_accuracy" in worse.text()
    undone = rollback(SYSTEM, registry.store, registry.uri, "draws no boxes")
    assert (undone.action, undone.champion, reigning(registry)) == ("rolled back", 1, 1)
    assert Journal(registry.store, SYSTEM).records()[-1].reasons == ["draws no boxes"]
    with pytest.raises(ValueError, match="no earlier champion"):
        rollback(SYSTEM, registry.store, registry.uri)


def test_what_was_rolled_back_returns_only_when_told_so(registry):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    rollback(SYSTEM, registry.store, registry.uri)
    assert registry.promote(1, 0.72).action == "held back"
    assert registry.promote(1, 0.72, GateSettings(rolled_back=True)).champion == 2


def test_the_first_model_must_keep_the_floors_too(registry):
    decision = registry.promote(0, 0.5, FLOOR)
    assert (decision.action, decision.champion, reigning(registry), numbers(registry)) == ("held back", None, None, [1])


def test_a_champion_measured_on_other_data_is_not_compared(registry):
    registry.promote(0, 0.9)
    registry.write_data(16)
    held = registry.promote(1, 0.7)
    assert [check.name for check in held.checks if not check.holds] == ["same test data"]
    assert registry.promote(1, 0.7, GateSettings(other_test_data=True)).champion == 2


def test_missing_answers_hold_back(registry):
    candidate = registry.candidate(0)
    content = json.loads(candidate.metrics.read_text())
    content["scores"]["instruct"]["rec_accuracy"]["missing"] = 1
    candidate.metrics.write_text(json.dumps(content))
    decision = promote(candidate, GateSettings(), registry.store, registry.tracker("promote", "x"), registry.folder)
    assert decision.action == "held back"


def test_weights_that_are_not_there_are_refused_and_nothing_is_registered(registry, tmp_path):
    for folder, message in (
        (tmp_path / "none", "trainable.safetensors, config.json not there"),
        (registry.weights[0].parent, "not there"),
    ):
        with pytest.raises(ValueError, match=message):
            promote(
                replace(registry.candidate(0), weights=folder),
                GateSettings(),
                registry.store,
                registry.tracker("promote", "x"),
            )
    assert numbers(registry) == []
    assert registry.store.list(registry.store.uri("registry")) == []


def test_one_altered_byte_in_the_store_is_refused_by_promote_load_and_rollback(registry):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    weights = find(registry.uri, f"models:/{SYSTEM}/1").recipe.weights + "/trainable.safetensors"
    content = bytearray(registry.store.read(weights))
    content[-1] ^= 1
    registry.store.write(weights, bytes(content))
    with pytest.raises(ValueError, match="was altered"):
        registry.promote(0, 0.7)
    with pytest.raises(ValueError, match=r"trainable.safetensors: \d+ bytes with sha256"):
        rollback(SYSTEM, registry.store, registry.uri)
    mlflow.set_tracking_uri(registry.uri)
    with pytest.raises(ValueError, match="differ from their manifest"):
        mlflow.pyfunc.load_model(f"models:/{SYSTEM}/1")
    assert reigning(registry) == 2


def test_a_base_that_is_another_fails_the_smoke_prediction(registry):
    backbones = json.loads((registry.weights[0] / "config.json").read_text())["backbones"]
    candidate = replace(registry.candidate(0), backbones={"vision": backbones["language"]["uri"]})
    decision = promote(candidate, GateSettings(), registry.store, registry.tracker("promote", "x"), registry.folder)
    assert [check.name for check in decision.checks if not check.holds] == ["smoke prediction"]
    assert "wrong base" in decision.text()
    assert reigning(registry) is None


def test_the_command_rolls_back_in_a_project(registry, monkeypatch, capsys):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    shutil.copyfile(ROOT / "params.yaml", registry.folder / "params.yaml")
    monkeypatch.chdir(registry.folder)
    monkeypatch.setenv("MGPT_STORAGE__ROOT", registry.store.root)
    monkeypatch.setenv("MGPT_TRACKING__URI", registry.uri)
    assert main(["rollback", SYSTEM, "--reason", "draws no boxes"]) == 0
    told = capsys.readouterr().out
    assert "version 2 is rolled back; champion: version 1" in told
    assert "draws no boxes" in told
    assert reigning(registry) == 1
    assert main(["rollback", SYSTEM]) == 2
    assert "no earlier champion" in capsys.readouterr().err


def test_an_alias_moved_by_hand_stops_a_rollback(registry):
    registry.promote(0, 0.7)
    registry.promote(1, 0.72)
    connect(registry.uri).set_registered_model_alias(SYSTEM, "champion", "1")
    with pytest.raises(ValueError, match="moved by hand"):
        rollback(SYSTEM, registry.store, registry.uri)


def test_the_decision_is_logged_with_the_run(registry):
    decision = registry.promote(0)
    client, run_id = connect(registry.uri), registry.tracker("promote", "promote-1").run_id
    (registry.folder / "back").mkdir()
    with open(client.download_artifacts(run_id, "decision.json", str(registry.folder / "back"))) as file:
        assert json.load(file) == json.loads(json.dumps(decision.as_dict()))
    assert client.get_run(run_id).data.tags["mgpt.decision"] == "promoted"


def test_only_kilobytes_go_to_mlflow(registry):
    registry.promote(0)
    sent = [file for file in (registry.folder / "artifacts").rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in sent) < 50_000
    assert "recipe.json" in {file.name for file in sent}
    assert not {"trainable.safetensors", "config.json"} & {file.name for file in sent}


def test_scores_of_another_checkpoint_do_not_count(registry):
    write_scores(registry.folder / "metrics.json")
    candidate = replace(registry.candidate(0), checkpoint="pretrain")
    with pytest.raises(ValueError, match="'pretrain', only of untrained, instruct"):
        promote(candidate, GateSettings(), registry.store, registry.tracker("promote", "x"), registry.folder)


def test_a_bucket_as_store(registry, bucket):
    from mgpt.storage import Store

    registry.store = Store(f"{bucket}/root")
    registry.write_data(12)
    assert registry.promote(0).champion == 1
    recipe = find(registry.uri, f"models:/{SYSTEM}@champion").recipe
    assert recipe.weights.startswith(f"{bucket}/root/models/{SYSTEM}/")
    mlflow.set_tracking_uri(registry.uri)
    table = pandas.DataFrame([{"image": b"no image", "prompt": "[refer] the circle"}])
    with pytest.raises(ValueError, match="question 0: image bytes: not a readable image"):
        mlflow.pyfunc.load_model(f"models:/{SYSTEM}@champion").predict(table)
