"""Runs of stages on a database and on a server: found again, resumed, killed."""

import os
import pickle
import signal
import subprocess
import sys

import pytest

from mgpt.config.registry import TrackingSettings
from mgpt.tracking.client import connect
from mgpt.tracking.lineage import COMMIT, DIRTY, FINGERPRINT, INPUT, STAGE
from mgpt.tracking.runs import Tracker, flatten


@pytest.fixture(params=["sqlite", "server"])
def settings(request, tmp_path):
    """Both kinds of store; each test has its own experiment on the shared server."""
    uri = request.getfixturevalue("mlflow_uri") if request.param == "sqlite" else request.getfixturevalue("server").uri
    return TrackingSettings(uri=uri, experiment=tmp_path.name)


def open_run(settings, tmp_path, fingerprint="abc", stage="pretrain", **options):
    folders = {"project": tmp_path, "artifacts": str(tmp_path / "artifacts")}
    return Tracker.open(settings, stage=stage, model_name="minigpt-v2", fingerprint=fingerprint, **folders, **options)


def steps(tracker, key="loss"):
    return [point.step for point in connect(tracker.tracking_uri).get_metric_history(tracker.run_id, key)]


def test_stage_and_fingerprint_have_one_run(settings, tmp_path):
    first = open_run(settings, tmp_path)
    assert first.finish("FAILED")
    again = open_run(settings, tmp_path)
    assert again.run_id == first.run_id
    assert connect(first.tracking_uri).get_run(first.run_id).info.status == "RUNNING"
    assert open_run(settings, tmp_path, fingerprint="abd").run_id != first.run_id
    assert open_run(settings, tmp_path, stage="evaluate").run_id != first.run_id


def test_oldest_run_of_a_fingerprint_continues(settings, tmp_path):
    first = open_run(settings, tmp_path)
    client = connect(settings.uri)
    run = client.get_run(first.run_id)
    client.create_run(run.info.experiment_id, tags={name: run.data.tags[name] for name in (STAGE, FINGERPRINT)})
    assert open_run(settings, tmp_path).run_id == first.run_id


def test_resumed_curve_has_each_step_once(settings, tmp_path):
    tracker = open_run(settings, tmp_path)
    for step in range(1, 8):
        tracker.log_metrics({"loss": 1 / step, "rate": 0.1}, step)
    assert tracker.flush()
    resumed = pickle.loads(pickle.dumps(open_run(settings, tmp_path)))
    for step in range(5, 12):  # back to a checkpoint at step 4
        resumed.log_metrics({"loss": 100.0}, step)
    assert resumed.finish()
    history = connect(tracker.tracking_uri).get_metric_history(tracker.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 12))
    assert [point.value for point in history][:7] == [1 / step for step in range(1, 8)]
    assert steps(tracker, "rate") == list(range(1, 8))


WORKER = """
import pickle, sys, time
tracker = pickle.loads(bytes.fromhex(sys.argv[1]))
for step in range(1, 6):
    tracker.log_metrics({"loss": float(step)}, step)
tracker.flush()
print("flushed", flush=True)
for step in range(6, 10**6):
    tracker.log_metrics({"loss": float(step)}, step)
    time.sleep(0.001)
"""


def test_curve_continues_after_kill(settings, tmp_path):
    tracker = open_run(settings, tmp_path)
    command = [sys.executable, "-c", WORKER, pickle.dumps(tracker).hex()]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "flushed\n"
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    reached = len(steps(tracker))
    assert reached >= 5
    for step in range(3, reached + 4):
        tracker.log_metrics({"loss": float(step)}, step)
    assert tracker.finish()
    assert steps(tracker) == list(range(1, reached + 4))


def test_parameters_are_logged_once(settings, tmp_path, caplog):
    tracker = open_run(settings, tmp_path)
    many = {f"p{number}": number for number in range(150)}
    tracker.log_params({"pretrain.minigpt-v2": {"learning_rate": 0.1}, "files": {"a (1).zip": "x" * 9000}, **many})
    assert tracker.flush()
    resumed = open_run(settings, tmp_path)
    resumed.log_params({"pretrain.minigpt-v2": {"learning_rate": 0.2}, "new": True})
    assert resumed.finish()
    stored = connect(tracker.tracking_uri).get_run(tracker.run_id).data.params
    assert stored["pretrain.minigpt-v2.learning_rate"] == "0.1"
    assert (stored["new"], stored["p149"], len(stored)) == ("True", "149", 153)
    assert len(stored["files.a _1_.zip"]) == 6000
    assert "keeps its first value of pretrain.minigpt-v2.learning_rate" in caplog.text


def test_tags_and_artifacts(settings, tmp_path):
    tracker = open_run(settings, tmp_path, inputs={"results/curate/manifest.json": "d1"})
    (tmp_path / "summary.txt").write_text("all well")
    tracker.log_artifact(tmp_path / "summary.txt", "texts")
    tracker.set_tags({f"tag{number}": "x" for number in range(120)})
    assert tracker.finish()
    client = connect(tracker.tracking_uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[f"{INPUT}results/curate/manifest.json"] == "d1"
    assert (run.data.tags[COMMIT], run.data.tags[DIRTY], run.data.tags["tag119"]) == ("unknown", "unknown", "x")
    assert run.data.tags["mlflow.runName"] == "pretrain@minigpt-v2"
    (tmp_path / "back").mkdir()
    fetched = client.download_artifacts(tracker.run_id, "texts/summary.txt", str(tmp_path / "back"))
    with open(fetched) as file:
        assert file.read() == "all well"


def test_invalid_names_and_steps_are_refused_at_once(mlflow_uri, tmp_path):
    tracker = open_run(TrackingSettings(uri=mlflow_uri), tmp_path)
    with pytest.raises(ValueError, match="loss%"):
        tracker.log_metrics({"loss%": 1.0}, 1)
    with pytest.raises(ValueError, match="step -1"):
        tracker.log_metrics({"loss": 1.0}, -1)
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        tracker.log_artifact(tmp_path / "none.txt")


def test_non_finite_values_are_skipped(mlflow_uri, tmp_path, caplog):
    tracker = open_run(TrackingSettings(uri=mlflow_uri), tmp_path)
    tracker.log_metrics({"loss": float("nan"), "norm": float("inf"), "rate": 0.5}, 3)
    assert tracker.finish()
    assert connect(mlflow_uri).get_run(tracker.run_id).data.metrics == {"rate": 0.5}
    assert "step 3: not logged, not finite: loss, norm" in caplog.text


def test_unreachable_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tracking\.uri: http://127\.0\.0\.1:9"):
        open_run(TrackingSettings(uri="http://127.0.0.1:9"), tmp_path)


def test_flatten_uses_dotted_keys():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": "1", "d": "[1, 2]"}
