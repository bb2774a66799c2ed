"""A model that has learned one answer with a box, one with random weights, and a registry whose champion is the first."""

from __future__ import annotations

import pytest

from mgpt.serve.loading import load_weights
from tests.fixtures_registry import Registry, make_weights, teach
from tests.fixtures_train import make_bases


@pytest.fixture(scope="session")
def all_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    bases = make_bases(folder / "bases")
    return [make_weights(teach(bases, folder / "taught"), folder / "boxes", 0), make_weights(bases, folder / "random", 0)]


@pytest.fixture(scope="session")
def predictor(all_weights):
    return load_weights(all_weights[0])


@pytest.fixture
def registry(tmp_path, mlflow_uri, all_weights):
    made = Registry(tmp_path, mlflow_uri, all_weights)
    assert made.promote(0).promoted
    return made
