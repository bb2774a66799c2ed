"""Addresses, experiments and imports of the MLflow client."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt.tracking.client import absolute_uri, connect, experiment_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:////project/mlflow.db"),
        ("sqlite:///runs/../mlflow.db", "sqlite:////project/mlflow.db"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_relative_databases_are_in_the_project(given, expected):
    assert absolute_uri(given, Path("/project")) == expected


def test_experiment_is_created_once_with_artifact_location(mlflow_uri, tmp_path):
    client = connect(mlflow_uri)
    made = experiment_id(client, mlflow_uri, "mine", str(tmp_path / "artifacts"))
    assert experiment_id(client, mlflow_uri, "mine", "elsewhere") == made
    assert client.get_experiment(made).artifact_location == str(tmp_path / "artifacts")


def test_environment_overrides_short_timeouts(monkeypatch, mlflow_uri):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    connect(mlflow_uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"


def test_registry_import_is_light():
    modules = "mgpt.tracking.runs, mgpt.registry.promotion, mgpt.registry.audit, mgpt.serving.chat"
    code = f"import sys, {modules}; print({{'mlflow', 'torch', 'ray'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
