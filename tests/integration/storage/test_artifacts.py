"""Finished work comes back byte for byte, from a local store and from S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt.storage import Store
from mgpt.storage.artifacts import FORMAT, ArtifactStore
from mgpt.storage.hashing import content_digest


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def artifacts(store: Store) -> ArtifactStore:
    return ArtifactStore(store)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A stage's outputs: a folder and a file."""
    (tmp_path / "made" / "weights").mkdir(parents=True)
    (tmp_path / "made" / "weights" / "a.bin").write_bytes(b"a" * 1000)
    (tmp_path / "made" / "metrics.json").write_text("{}")
    return tmp_path / "made"


def test_outputs_are_restored_in_one_step(artifacts: ArtifactStore, made: Path, tmp_path: Path) -> None:
    assert artifacts.outputs("id") is None
    artifacts.commit("id", made, ["weights", "metrics.json"])
    (tmp_path / "results" / "old").mkdir(parents=True)
    outputs = artifacts.outputs("id")
    assert outputs is not None
    artifacts.restore("id", outputs, tmp_path / "staging", tmp_path / "results")
    assert content_digest(tmp_path / "results") == content_digest(made)
    assert not (tmp_path / "staging").exists()


def test_first_record_stays(artifacts: ArtifactStore, made: Path) -> None:
    artifacts.commit("id", made, ["metrics.json"])
    first = artifacts.outputs("id")
    (made / "metrics.json").write_text("{1}")
    artifacts.commit("id", made, ["metrics.json"])
    assert artifacts.outputs("id") == first
    artifacts.invalidate("id")
    assert artifacts.outputs("id") is None


def test_altered_content_is_refused_and_nothing_is_replaced(
    artifacts: ArtifactStore, made: Path, tmp_path: Path
) -> None:
    artifacts.commit("id", made, ["weights"])
    outputs = artifacts.outputs("id")
    assert outputs is not None
    artifacts.store.write(f"{artifacts.uri(outputs['weights'])}/a.bin", b"b" * 1000)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept").write_text("1")
    with pytest.raises(ValueError, match="altered"):
        artifacts.restore("id", outputs, tmp_path / "staging", tmp_path / "results")
    assert (tmp_path / "results" / "kept").exists()
    assert artifacts.outputs("id") is None, "the next run repeats the work"
    artifacts.commit("id", made, ["weights"])
    again = artifacts.outputs("id")
    assert again == outputs
    artifacts.restore("id", again, tmp_path / "staging", tmp_path / "results")
    assert content_digest(tmp_path / "results" / "weights") == outputs["weights"]


def test_equal_content_is_kept_once(artifacts: ArtifactStore, made: Path) -> None:
    first = artifacts.put(made / "weights")
    count = len(artifacts.store.list(artifacts.store.uri("content")))
    assert artifacts.put(made / "weights") == first
    assert len(artifacts.store.list(artifacts.store.uri("content"))) == count


def test_get_replaces_what_is_there(artifacts: ArtifactStore, made: Path, tmp_path: Path) -> None:
    digest = artifacts.put(made / "weights")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "other").write_text("1")
    artifacts.get(digest, tmp_path / "target")
    assert content_digest(tmp_path / "target") == digest


def test_verify_lists_files_and_names_what_differs(artifacts: ArtifactStore, made: Path) -> None:
    digest = artifacts.put(made / "weights")
    assert artifacts.verify(digest) == [f"{artifacts.uri(digest)}/a.bin"]
    artifacts.store.write(f"{artifacts.uri(digest)}/b.bin", b"b")
    with pytest.raises(ValueError, match=r"b\.bin"):
        artifacts.verify(digest)
    artifacts.delete(digest)
    with pytest.raises(ValueError, match="gone"):
        artifacts.verify(digest)


def test_local_folder_holds_the_content(artifacts: ArtifactStore, made: Path) -> None:
    digest = artifacts.put(made / "weights")
    folder = artifacts.local_folder(digest)
    assert content_digest(folder) == digest
    assert artifacts.local_folder(digest) == folder
    with pytest.raises(ValueError, match="gone"):
        artifacts.local_folder("0" * 64)


def test_format_is_written_once(artifacts: ArtifactStore) -> None:
    uri = artifacts.store.uri("format.json")
    artifacts.check_format(create=False)
    assert not artifacts.store.exists(uri)
    artifacts.check_format()
    artifacts.check_format()
    assert json.loads(artifacts.store.read(uri)) == {"format": FORMAT}


@pytest.mark.parametrize(("content", "age"), [(None, "earlier"), (FORMAT - 1, "earlier"), (FORMAT + 1, "later")])
def test_store_of_another_version_is_refused(artifacts: ArtifactStore, content: int | None, age: str) -> None:
    artifacts.store.write(artifacts.store.uri("runs", "0123", "curve.csv"), b"step\n")
    if content is not None:
        artifacts.store.write(artifacts.store.uri("format.json"), json.dumps({"format": content}).encode())
    with pytest.raises(ValueError, match=rf"storage\.root.* {age} version.*new folder"):
        artifacts.check_format()
