"""A registry with real weights, and a real MLflow server that tests may stop and start."""

from __future__ import annotations

import pytest

from tests.fixtures_registry import Registry, make_all_weights
from tests.servers import MlflowServer


@pytest.fixture(scope="session")
def all_weights(tmp_path_factory):
    return make_all_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def registry(tmp_path, mlflow_uri, all_weights):
    return Registry(tmp_path, mlflow_uri, all_weights)


@pytest.fixture(scope="session")
def server(tmp_path_factory, mlflow_template):
    running = MlflowServer(tmp_path_factory.mktemp("server"), mlflow_template)
    running.start()
    yield running
    running.stop()
