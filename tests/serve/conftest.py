"""A model with random weights, and the registry that holds it."""

from __future__ import annotations

import pytest

from mgpt.serve.loading import load_weights
from tests.fixtures_registry import Registry, make_all_weights


@pytest.fixture(scope="session")
def all_weights(tmp_path_factory):
    return make_all_weights(tmp_path_factory.mktemp("weights"), 1)


@pytest.fixture(scope="session")
def predictor(all_weights):
    return load_weights(all_weights[0])


@pytest.fixture
def registry(tmp_path, mlflow_uri, all_weights):
    made = Registry(tmp_path, mlflow_uri, all_weights)
    assert made.promote(0).promoted
    return made
