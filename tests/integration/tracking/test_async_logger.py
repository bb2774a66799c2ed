"""A server that is down for a while."""

import pytest
from mlflow.exceptions import MlflowException

from mgpt.config.registry import TrackingSettings
from mgpt.tracking.async_logger import is_final
from mgpt.tracking.client import connect
from mgpt.tracking.runs import Tracker


def test_training_goes_on_while_the_server_is_down_and_nothing_is_lost(server, tmp_path, caplog):
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
        assert "work goes on" in caplog.text
        assert "are not sent yet" in caplog.text
    finally:
        server.start()
    assert tracker.flush(120)
    client = connect(server.uri)
    assert [point.step for point in client.get_metric_history(tracker.run_id, "loss")] == list(range(1, 2500))
    run = client.get_run(tracker.run_id)
    assert (run.data.tags["note"], run.info.status) == ("while down", "FINISHED")
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["notes.txt"]
    assert "answers again" in caplog.text


def test_what_is_refused_for_good_does_not_hold_up_the_rest(mlflow_uri, tmp_path, caplog):
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
        (MlflowException("no", error_code=1), False),  # INTERNAL_ERROR, a connection that broke among them
        (MlflowException.invalid_parameter_value("no"), True),
        (ConnectionError("no"), False),
        (TypeError("no"), True),
    ],
)
def test_only_what_cannot_succeed_is_final(error, final):
    assert is_final(error) is final
