"""A run's checkpoints on storage, as Ray Train names them."""

import json

import pytest
import torch

from mgpt.execution.checkpoints import ATTEMPTS, SNAPSHOT, mend, retried, tidy
from mgpt.training.checkpoint import TrainingState


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints that count, of steps 10 and 20, and one that does not."""
    for name, step in (("checkpoint_a", 10), ("checkpoint_b", 20), ("checkpoint_left", 30)):
        (tmp_path / name).mkdir()
        TrainingState({"w": torch.ones(3)}, {"exp_avg/w": torch.zeros(3)}, {}, {}, step).save(tmp_path / name)
    named = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in ("checkpoint_a", "checkpoint_b")]
    content = {"checkpoint_results": named, "checkpoint_report_indices": [0, 1], "latest_checkpoint_result": named[1]}
    (tmp_path / SNAPSHOT).write_text(json.dumps(content))
    (tmp_path / "curve.csv").write_text("step\n")
    return tmp_path


def snapshot(run):
    return json.loads((run / SNAPSHOT).read_text())


def test_whole_checkpoints_stay(run):
    before = (run / SNAPSHOT).read_bytes()
    assert mend(str(run)) == 0
    assert (run / SNAPSHOT).read_bytes() == before


def alter(run):
    path = run / "checkpoint_b" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def cut(run):
    (run / "checkpoint_b" / "state.json").write_text("{")


def lose(run):
    for path in (run / "checkpoint_b").iterdir():
        path.unlink()
    (run / "checkpoint_b").rmdir()


@pytest.mark.parametrize(
    ("damage", "said"), [(alter, "optimizer.safetensors"), (cut, "incomplete"), (lose, "no files there")]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, damage, said):
    damage(run)
    heard = []
    assert mend(str(run), heard.append) == 1
    assert snapshot(run)["latest_checkpoint_result"]["checkpoint_dir_name"] == "checkpoint_a"
    assert snapshot(run)["checkpoint_report_indices"] == [0]
    assert str(run / "checkpoint_b") in heard[0]
    assert said in heard[0]
    assert heard[0].endswith("The run goes on from checkpoint_a")
    assert mend(str(run), heard.append) == 0


def test_without_a_whole_checkpoint_the_run_begins_at_step_0(run):
    lose(run)
    (run / "checkpoint_a" / "parameters.safetensors").unlink()
    heard = []
    assert mend(str(run), heard.append) == 2
    assert snapshot(run)["latest_checkpoint_result"] is None
    assert heard[0].endswith("The run begins at step 0")


def test_a_snapshot_that_was_cut_off_counts_for_nothing(run):
    (run / SNAPSHOT).write_text("")
    heard = []
    assert mend(str(run), heard.append) == 1
    assert "is not whole" in heard[0]
    assert not (run / SNAPSHOT).exists()


def test_only_what_kills_left_is_tidied_away(run):
    tidy(str(run))
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint_a", "checkpoint_b", SNAPSHOT, "curve.csv"]


def test_storage_that_fails_twice_is_asked_again_and_one_that_always_does_is_not(capsys):
    asked = []

    def action(failures):
        asked.append(failures)
        if len(asked) <= failures:
            raise OSError("503")
        return "kept"

    assert retried(lambda: action(2), "checkpoint", pause=0.01) == "kept"
    assert len(asked) == 3
    assert "checkpoint: attempt 2 of 5 failed (503)" in capsys.readouterr().out
    asked.clear()
    with pytest.raises(OSError, match="503"):
        retried(lambda: action(99), "checkpoint", pause=0.01)
    assert len(asked) == ATTEMPTS
