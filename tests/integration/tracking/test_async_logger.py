"""Logging while the MLflow server is down, and entries that it refuses."""

import pytest
from mlflow.exceptions import MlflowException

from mgpt.config.registry import TrackingSettings
from mgpt.tracking.async_logger import is_final
from mgpt.tracking.client import connect
from mgpt.tracking.runs import Tracker


def test_outage_blocks_nothing_and_loses_nothing(server, tmp_path, caplog):
    settings = TrackingSettings(uri=server.uri, patience_seconds=0.5)
    tracker = Tracker.open(settings, stage="pretrain", fingerprint=tmp_path.name, project=tmp_path)
    (tmp_path / "notes.txt").write_text("kept")
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.flush(60)
    server.stop()
    try:
        for step in range(2, 2500):
            tracker.log_metrics({"loss": 1 / step}, step)
        tracker.set_tags({"note": "while down"})
        tracker.log_artifact(tmp_path / "notes.txt")
        assert not tracker.finish()
        assert "does not respond" in caplog.text
        assert "not sent yet" in caplog.text
    finally:
        server.start()
    assert tracker.flush(120)
    client = connect(server.uri)
    assert [point.step for point in client.get_metric_history(tracker.run_id, "loss")] == list(range(1, 2500))
    run = client.get_run(tracker.run_id)
    assert (run.data.tags["note"], run.info.status) == ("while down", "FINISHED")
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["notes.txt"]
    assert "responds again" in caplog.text


def test_refused_entry_does_not_block_the_rest(mlflow_uri, tmp_path, caplog):
    tracker = Tracker.open(TrackingSettings(uri=mlflow_uri), stage="pretrain", fingerprint="x", project=tmp_path)
    connect(mlflow_uri).delete_run(tracker.run_id)
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.flush(30)
    connect(mlflow_uri).restore_run(tracker.run_id)
    tracker.log_metrics({"loss": 0.5}, 2)
    assert tracker.flush(30)
    assert connect(mlflow_uri).get_run(tracker.run_id).data.metrics == {"loss": 0.5}
    assert "refused an entry" in caplog.text


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (MlflowException("no", error_code=2), False),  # TEMPORARILY_UNAVAILABLE
        (MlflowException("no", error_code=1), False),  # INTERNAL_ERROR, also raised for broken connections
        (MlflowException.invalid_parameter_value("no"), True),
        (ConnectionError("no"), False),
        (TypeError("no"), True),
    ],
)
def test_final_errors(error, final):
    assert is_final(error) is final
