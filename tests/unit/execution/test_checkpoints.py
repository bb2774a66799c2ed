"""A run's checkpoints on storage."""

from pathlib import Path

import pytest
import tenacity
import torch
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from mgpt.execution.checkpoints import ATTEMPTS, CheckpointStore, retry_upload, upload_file
from mgpt.storage import Store
from mgpt.training.checkpoint import TrainingState


def save(checkpoints, folder, step, keep=9):
    folder.mkdir(exist_ok=True)
    TrainingState({"w": torch.ones(3)}, {"exp_avg/w": torch.zeros(3)}, {}, {}, step).save(folder)
    checkpoints.upload(folder, step, keep)


@pytest.fixture
def checkpoints(tmp_path):
    """A run with checkpoints of steps 10 and 20."""
    found = CheckpointStore(str(tmp_path / "run"))
    for step in (10, 20):
        save(found, tmp_path / "local", step)
    return found


@pytest.fixture
def newest(checkpoints):
    return Path(checkpoints.latest().uri)


def steps(checkpoints):
    return [checkpoint.step for checkpoint in checkpoints.committed()]


def test_run_without_checkpoints_starts_at_step_0(tmp_path):
    checkpoints = CheckpointStore(str(tmp_path))
    assert checkpoints.latest() is None
    assert checkpoints.latest_step() == 0
    assert checkpoints.drop_corrupt_checkpoints() == 0


def test_uploaded_checkpoint_loads(checkpoints):
    assert steps(checkpoints) == [10, 20]
    with checkpoints.local(checkpoints.latest()) as folder:
        assert TrainingState.load(folder).position == 20


def test_whole_checkpoints_are_kept(checkpoints):
    assert checkpoints.drop_corrupt_checkpoints() == 0
    assert steps(checkpoints) == [10, 20]


def test_upload_deletes_all_but_the_newest(checkpoints, tmp_path):
    save(checkpoints, tmp_path / "local", 30, keep=2)
    assert steps(checkpoints) == [20, 30]


def alter(folder):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def truncate(folder):
    (folder / "state.json").write_text("{")


def lose_tensors(folder):
    (folder / "parameters.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [(alter, "optimizer.safetensors"), (truncate, "incomplete"), (lose_tensors, "parameters.safetensors")],
)
def test_damaged_checkpoint_falls_back_to_the_one_before(checkpoints, newest, damage, fault):
    damage(newest)
    messages = []
    assert checkpoints.drop_corrupt_checkpoints(messages.append) == 1
    assert steps(checkpoints) == [10]
    assert str(newest) in messages[0]
    assert fault in messages[0]
    assert "step 10" in messages[0]
    assert checkpoints.drop_corrupt_checkpoints(messages.append) == 0


def test_without_a_whole_checkpoint_the_run_starts_at_step_0(checkpoints):
    for checkpoint in checkpoints.committed():
        alter(Path(checkpoint.uri))
    messages = []
    assert checkpoints.drop_corrupt_checkpoints(messages.append) == 2
    assert checkpoints.latest_step() == 0
    assert "step 0" in messages[-1]


def test_checkpoint_without_head_does_not_count(checkpoints, newest):
    (newest / "state.json").unlink()
    assert steps(checkpoints) == [10]


def test_only_orphans_are_deleted(checkpoints, newest):
    (newest / "state.json").unlink()
    checkpoints.delete_orphaned_checkpoints()
    assert not newest.exists()
    assert steps(checkpoints) == [10]


def failing(times, error=None):
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error or OSError("503")
        return "kept"

    return action, calls


@pytest.fixture
def without_pauses(monkeypatch):
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda _: None)


@pytest.mark.usefixtures("without_pauses")
def test_upload_is_retried(capsys):
    action, calls = failing(2)
    assert retry_upload(action)() == "kept"
    assert len(calls) == 3
    assert f"attempt 2 of {ATTEMPTS} failed (503)" in capsys.readouterr().out


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize(
    "error",
    [
        ConnectionClosedError(endpoint_url="http://store"),
        EndpointConnectionError(endpoint_url="http://store"),
        ReadTimeoutError(endpoint_url="http://store"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_upload_is_retried_after_connection_errors(error, tmp_path, monkeypatch):
    put, calls = failing(2, error)
    monkeypatch.setattr(Store, "put_file", lambda self, path, uri: put())
    monkeypatch.setattr(Store, "size", lambda self, uri: 1)
    (tmp_path / "file").write_bytes(b"1")
    upload_file(Store(str(tmp_path)), tmp_path / "file", "uri")
    assert len(calls) == 3


@pytest.mark.usefixtures("without_pauses")
def test_upload_that_always_fails_raises_the_last_error():
    action, calls = failing(99)
    with pytest.raises(OSError, match="503"):
        retry_upload(action)()
    assert len(calls) == ATTEMPTS


@pytest.mark.usefixtures("without_pauses")
def test_upload_that_stores_too_few_bytes_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "size", lambda self, uri: 1)
    (tmp_path / "file").write_bytes(b"four")
    with pytest.raises(OSError, match="1 bytes of 4"):
        upload_file(Store(str(tmp_path)), tmp_path / "file", str(tmp_path / "copy"))
