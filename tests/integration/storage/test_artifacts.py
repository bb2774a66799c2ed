"""Finished work comes back byte for byte, from a local store and from S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt.storage import Store, artifacts


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
    assert artifacts.finished(store, "id") is None
    artifacts.finish(store, "id", made, ["weights", "metrics.json"])
    (tmp_path / "results" / "old").mkdir(parents=True)
    outputs = artifacts.finished(store, "id")
    assert outputs is not None
    artifacts.bring(store, "id", outputs, tmp_path / "staging", tmp_path / "results")
    assert artifacts.content_digest(tmp_path / "results") == artifacts.content_digest(made)
    assert not (tmp_path / "staging").exists()


def test_the_first_record_stays(store: Store, made: Path) -> None:
    artifacts.finish(store, "id", made, ["metrics.json"])
    first = artifacts.finished(store, "id")
    (made / "metrics.json").write_text("{1}")
    artifacts.finish(store, "id", made, ["metrics.json"])
    assert artifacts.finished(store, "id") == first
    artifacts.forget(store, "id")
    assert artifacts.finished(store, "id") is None


def test_altered_content_is_refused_and_nothing_is_replaced(store: Store, made: Path, tmp_path: Path) -> None:
    artifacts.finish(store, "id", made, ["weights"])
    outputs = artifacts.finished(store, "id")
    assert outputs is not None
    store.write(store.uri("content", outputs["weights"], "a.bin"), b"b" * 1000)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept").write_text("1")
    with pytest.raises(ValueError, match="altered"):
        artifacts.bring(store, "id", outputs, tmp_path / "staging", tmp_path / "results")
    assert (tmp_path / "results" / "kept").exists()
    assert artifacts.finished(store, "id") is None, "the next run does the work again"
    artifacts.finish(store, "id", made, ["weights"])
    again = artifacts.finished(store, "id")
    assert again == outputs
    artifacts.bring(store, "id", again, tmp_path / "staging", tmp_path / "results")
    assert artifacts.content_digest(tmp_path / "results" / "weights") == outputs["weights"]


def test_equal_content_is_kept_once(store: Store, made: Path) -> None:
    first = artifacts.keep(store, made / "weights")
    count = len(store.list(store.uri("content")))
    assert artifacts.keep(store, made / "weights") == first
    assert len(store.list(store.uri("content"))) == count
