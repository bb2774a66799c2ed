import json
import shutil

import pytest

from mgpt.models.loading import SHIPPED_BACKBONES, find_backbone
from mgpt.serving.images import sample_image
from mgpt.serving.loading import load, load_weights
from tests.fixtures.registry import SYSTEM


def test_a_folder_and_the_registry_give_the_same_answers(registry, predictor):
    asked = (sample_image(), "[refer] the red circle", 12)
    expected = predictor.answer(*asked)
    assert load(str(registry.weights[0]), registry.uri).answer(*asked) == expected
    assert load(f"models:/{SYSTEM}@champion", registry.uri).answer(*asked) == expected


def test_backbones_may_have_moved(all_weights, tmp_path):
    shutil.copytree(all_weights[0], tmp_path / "weights")
    config = json.loads((tmp_path / "weights/config.json").read_text())
    moved = {name: base["uri"] for name, base in config["backbones"].items()}
    for base in config["backbones"].values():
        base["uri"] = "/gone"
    (tmp_path / "weights/config.json").write_text(json.dumps(config))
    assert load_weights(tmp_path / "weights", moved).answer(sample_image(), "a", 2)


def test_another_base_is_refused(all_weights, tmp_path):
    language = json.loads((all_weights[0] / "config.json").read_text())["backbones"]["language"]["uri"]
    shutil.copytree(language, tmp_path / "language")
    content = json.loads((tmp_path / "language/config.json").read_text())
    (tmp_path / "language/config.json").write_text(json.dumps({**content, "rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="wrong base"):
        load_weights(all_weights[0], {"language": str(tmp_path / "language")})


def test_a_base_that_is_nowhere_is_named_with_the_places():
    with pytest.raises(
        ValueError,
        match=rf"'audio' \(ears, sha256 abc\) is in none of /a, /b, {SHIPPED_BACKBONES}/audio; run the download",
    ):
        find_backbone("audio", {"id": "ears", "sha256": "abc", "uri": "/b"}, "/a")


def test_a_base_in_a_bucket_is_fetched(all_weights, bucket, tmp_path, monkeypatch):
    from mgpt.storage import Store

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vision = json.loads((all_weights[0] / "config.json").read_text())["backbones"]["vision"]
    Store(bucket).put_folder(vision["uri"], f"{bucket}/vision")
    assert (find_backbone("vision", vision, f"{bucket}/vision") / "config.json").is_file()


def test_what_is_no_model_is_refused(tmp_path, mlflow_uri):
    with pytest.raises(
        ValueError, match=r"no config\.json; give a folder of trained weights, or models:/NAME@champion"
    ):
        load(str(tmp_path), mlflow_uri)
    with pytest.raises(ValueError, match="run the promote stage"):
        load("models:/minigpt4@champion", mlflow_uri)
