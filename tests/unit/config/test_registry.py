"""Settings of tracking and promote."""

import pytest
from pydantic import ValidationError

from mgpt.config.registry import GateSettings, TrackingSettings


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "http://host:5000", "https://host", "postgresql+psycopg2://u@h/db"]
)
def test_databases_and_servers_are_accepted(uri):
    assert TrackingSettings(uri=uri).uri == uri


@pytest.mark.parametrize("uri", ["", "mlruns", "./mlruns", "file:///mlruns", "sqlite://mlflow.db", "ftp://host"])
def test_other_addresses_are_refused(uri):
    with pytest.raises(ValidationError, match="MLflow database or server"):
        TrackingSettings(uri=uri)


@pytest.mark.parametrize(
    "wrong", [{"patience_seconds": 0}, {"patience_seconds": -1}, {"experiment": ""}, {"server": "x"}]
)
def test_invalid_tracking_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrackingSettings(**wrong)


def test_metric_has_one_limit():
    with pytest.raises(ValidationError, match="vqa is in floors and in ceilings"):
        GateSettings(floors={"vqa": 0.5, "rec": 0.5}, ceilings={"vqa": 0.9})
    with pytest.raises(ValidationError):
        GateSettings(floors={"vqa": "high"})
    with pytest.raises(ValidationError):
        GateSettings(flors={"vqa": 0.5})
