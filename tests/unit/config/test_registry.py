import pytest
from pydantic import ValidationError

from mgpt.config.registry import GateSettings, TrackingSettings


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "http://host:5000", "https://host", "postgresql+psycopg2://u@h/db"]
)
def test_stores(uri):
    assert TrackingSettings(uri=uri).uri == uri


@pytest.mark.parametrize("uri", ["", "mlruns", "./mlruns", "file:///mlruns", "sqlite://mlflow.db", "ftp://host"])
def test_what_is_no_store(uri):
    with pytest.raises(ValidationError, match="address of an MLflow database or server"):
        TrackingSettings(uri=uri)


@pytest.mark.parametrize(
    "wrong", [{"patience_seconds": 0}, {"patience_seconds": -1}, {"experiment": ""}, {"server": "x"}]
)
def test_tracking_values(wrong):
    with pytest.raises(ValidationError):
        TrackingSettings(**wrong)


def test_a_metric_is_limited_on_one_side():
    with pytest.raises(ValidationError, match="vqa stands under floors and ceilings"):
        GateSettings(floors={"vqa": 0.5, "refer": 0.5}, ceilings={"vqa": 0.9})
    with pytest.raises(ValidationError):
        GateSettings(floors={"vqa": "high"})
    with pytest.raises(ValidationError):
        GateSettings(flors={"vqa": 0.5})
