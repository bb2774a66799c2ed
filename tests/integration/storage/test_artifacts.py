"""Finished work comes back byte for byte, from a local store and from S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt.storage import Store
from mgpt.storage.artifacts import ArtifactStore, content_digest


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What a stage left: a folder and a file."""
    (tmp_path / "made" / "weights").mkdir(parents=True)
    (tmp_path / "made" / "weights" / "a.bin").write_bytes(b"a" * 1000)
    (tmp_path / "made" / "metrics.json").write_text("{}")
    return tmp_path / "made"


def test_outputs_come_back_in_one_step(store: Store, made: Path, tmp_path: Path) -> None:
    assert ArtifactStore(store).outputs("id") is None
    ArtifactStore(store).commit("id", made, ["weights", "metrics.json"])
    (tmp_path / "results" / "old").mkdir(parents=True)
    outputs = ArtifactStore(store).outputs("id")
    assert outputs is not None
    ArtifactStore(store).restore("id", outputs, tmp_path / "staging", tmp_path / "results")
    assert content_digest(tmp_path / "results") == content_digest(made)
    assert not (tmp_path / "staging").exists()


def test_the_first_record_stays(store: Store, made: Path) -> None:
    ArtifactStore(store).commit("id", made, ["metrics.json"])
    first = ArtifactStore(store).outputs("id")
    (made / "metrics.json").write_text("{1}")
    ArtifactStore(store).commit("id", made, ["metrics.json"])
    assert ArtifactStore(store).outputs("id") == first
    ArtifactStore(store).invalidate("id")
    assert ArtifactStore(store).outputs("id") is None


def test_altered_content_is_refused_and_nothing_is_replaced(store: Store, made: Path, tmp_path: Path) -> None:
    ArtifactStore(store).commit("id", made, ["weights"])
    outputs = ArtifactStore(store).outputs("id")
    assert outputs is not None
    store.write(store.uri("content", outputs["weights"], "a.bin"), b"b" * 1000)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept").write_text("1")
    with pytest.raises(ValueError, match="altered"):
        ArtifactStore(store).restore("id", outputs, tmp_path / "staging", tmp_path / "results")
    assert (tmp_path / "results" / "kept").exists()
    assert ArtifactStore(store).outputs("id") is None, "the next run does the work again"
    ArtifactStore(store).commit("id", made, ["weights"])
    again = ArtifactStore(store).outputs("id")
    assert again == outputs
    ArtifactStore(store).restore("id", again, tmp_path / "staging", tmp_path / "results")
    assert content_digest(tmp_path / "results" / "weights") == outputs["weights"]


def test_equal_content_is_kept_once(store: Store, made: Path) -> None:
    first = ArtifactStore(store).put(made / "weights")
    count = len(store.list(store.uri("content")))
    assert ArtifactStore(store).put(made / "weights") == first
    assert len(store.list(store.uri("content"))) == count
