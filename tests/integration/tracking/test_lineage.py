"""Lineage tags of code, data, backbones and stages."""

import hashlib
import json
import subprocess
from dataclasses import replace

import pytest

from mgpt.storage import Entry, Manifest
from mgpt.tracking.client import connect
from mgpt.tracking.lineage import (
    COMMIT,
    DATA,
    DIRTY,
    PARAMS,
    TEST_DATA,
    backbone_tags,
    code_tags,
    data_tags,
    stage_tags,
)


def git(folder, *arguments):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_code_tags_hold_commit_and_changes(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    (tmp_path / "dvc.lock").write_text("a\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "params.yaml", "dvc.lock")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    (tmp_path / "dvc.lock").write_text("b\n")
    tags = code_tags(tmp_path)
    assert tags == {
        COMMIT: git(tmp_path, "rev-parse", "HEAD"),
        DIRTY: "false",
        PARAMS: hashlib.sha256(b"seed: 1\n").hexdigest(),
    }
    (tmp_path / "params.yaml").write_text("seed: 2\n")
    assert code_tags(tmp_path)[DIRTY] == "true"


def test_commit_is_unknown_without_git(tmp_path):
    assert code_tags(tmp_path) == {COMMIT: "unknown", DIRTY: "unknown", PARAMS: "absent"}


def entry(name, split, sha256="a" * 64):
    return Entry(f"{name}/{split}/0.parquet", "store/x", 5, sha256, None, {"dataset": name, "split": split, "rows": 1})


def test_data_tags_change_with_their_data(tmp_path):
    entries = [entry("coco", "train"), entry("coco", "test"), entry("vqa", "val")]
    Manifest(entries).save(tmp_path / "one.json")
    Manifest([replace(entries[0], sha256="b" * 64), *entries[1:]]).save(tmp_path / "two.json")
    one, two = data_tags(tmp_path / "one.json"), data_tags(tmp_path / "two.json")
    assert set(one) == {DATA, TEST_DATA, f"{DATA}.coco", f"{DATA}.vqa"}
    assert {name for name in one if one[name] != two[name]} == {DATA, f"{DATA}.coco"}


def test_data_without_test_split_is_refused(tmp_path):
    Manifest([entry("coco", "train")]).save(tmp_path / "one.json")
    with pytest.raises(ValueError, match="only training data"):
        data_tags(tmp_path / "one.json")
    with pytest.raises(ValueError, match="run the curate stage"):
        data_tags(tmp_path / "none.json")


def test_backbone_tags(tmp_path):
    backbone = {"id": "eva", "revision": "r1", "sha256": "f" * 64, "uri": "/somewhere"}
    (tmp_path / "config.json").write_text(json.dumps({"backbones": {"vision": backbone}}))
    assert backbone_tags(tmp_path) == {
        "mgpt.backbone.vision.id": "eva",
        "mgpt.backbone.vision.revision": "r1",
        "mgpt.backbone.vision.sha256": "f" * 64,
    }


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"backbones": {}}', '{"backbones": {"vision": {"id": "eva"}}}'])
def test_weights_without_backbone_hashes_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        backbone_tags(tmp_path)


def test_stage_without_run_is_refused(mlflow_uri):
    with pytest.raises(ValueError, match="instruct, fingerprint 99"):
        stage_tags(connect(mlflow_uri), {"instruct": "99"})
