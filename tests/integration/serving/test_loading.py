"""Loading by folder and by reference: moved stores, moved backbones, wrong backbones."""

import json
import shutil
from dataclasses import replace

import pytest

from mgpt.models.loading import SHIPPED_BACKBONES, find_backbone
from mgpt.registry.versions import find
from mgpt.serving.images import sample_image
from mgpt.serving.loading import load, load_weights
from mgpt.storage import Store
from tests.fixtures.registry import MODEL, Registry, make_weights
from tests.fixtures.training_data import make_backbones

QUESTION = (sample_image(), "[refer] the red circle", 12)


def test_folder_and_reference_give_same_answers(registry, predictor):
    champion = find(registry.uri, f"models:/{MODEL}@champion").weights
    expected = predictor.answer(*QUESTION)
    assert load(registry.weights[0]).answer(*QUESTION) == expected
    assert load(champion, registry.store).answer(*QUESTION) == expected
    assert load(champion).answer(*QUESTION) == expected, "by default from the store of the registration"


def test_champion_loads_from_moved_project(tmp_path, mlflow_uri):
    """Backbones and weights inside the store are found after the project was copied and its first folder renamed."""
    project = tmp_path / "project"
    backbones = make_backbones(project / "store" / "sources" / "backbones")
    weights = make_weights(backbones, project / "weights", 0)
    registry = Registry(project, mlflow_uri, [weights])
    assert registry.promote(0).promoted
    champion = find(mlflow_uri, f"models:/{MODEL}@champion").weights
    assert champion.backbones == {name: f"sources/backbones/{name}" for name in champion.backbones}
    expected = load(champion, registry.store).answer(*QUESTION)
    shutil.copytree(project, tmp_path / "copy")
    project.rename(tmp_path / "renamed")
    moved = Store(str(tmp_path / "copy" / "store"))
    assert load(champion, moved).answer(*QUESTION) == expected
    with pytest.raises(ValueError, match="gone"):
        load(champion)


def test_reference_to_other_content_is_refused(registry):
    champion = find(registry.uri, f"models:/{MODEL}@champion").weights
    with pytest.raises(ValueError, match=r"0{64} is gone"):
        load(replace(champion, digest="0" * 64), registry.store)


def test_moved_backbones_are_found(all_weights, tmp_path):
    shutil.copytree(all_weights[0], tmp_path / "weights")
    config = json.loads((tmp_path / "weights/config.json").read_text())
    moved = {name: base["uri"] for name, base in config["backbones"].items()}
    for base in config["backbones"].values():
        base["uri"] = "/gone"
    (tmp_path / "weights/config.json").write_text(json.dumps(config))
    assert load_weights(tmp_path / "weights", moved).answer(sample_image(), "a", 2)


def test_wrong_backbone_is_refused(all_weights, tmp_path):
    language = json.loads((all_weights[0] / "config.json").read_text())["backbones"]["language"]["uri"]
    shutil.copytree(language, tmp_path / "language")
    content = json.loads((tmp_path / "language/config.json").read_text())
    (tmp_path / "language/config.json").write_text(json.dumps({**content, "rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="sha256"):
        load_weights(all_weights[0], {"language": str(tmp_path / "language")})


def test_missing_backbone_is_named_with_locations():
    with pytest.raises(ValueError, match=rf"audio.*ears.*sha256 abc.*/a, /b, {SHIPPED_BACKBONES}/audio"):
        find_backbone("audio", {"id": "ears", "sha256": "abc", "uri": "/b"}, "/a")


def test_backbone_in_bucket_is_downloaded(all_weights, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vision = json.loads((all_weights[0] / "config.json").read_text())["backbones"]["vision"]
    Store(bucket).put_folder(vision["uri"], f"{bucket}/vision")
    assert (find_backbone("vision", vision, f"{bucket}/vision") / "config.json").is_file()


def test_other_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load(tmp_path)
