import gc
from dataclasses import replace

import pytest


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_of_failed_datasets():
    """What a raised error passed through, and pytest's records of it, hold the dataset's actor with its CPU, for which a training of the
    next file would wait without end."""
    gc.collect()


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """(bases, manifest) of small trainings."""
    from mgpt.storage import Store
    from tests.fixtures_train import make_bases, make_data

    folder = tmp_path_factory.mktemp("training")
    return make_bases(folder / "bases"), make_data(Store(str(folder / "store")))


@pytest.fixture(scope="session")
def short(ray_here, training, tmp_path_factory):
    """A short training by two workers, for others to be compared with."""
    from tests.cluster.test_trainer import SHORT, request, train

    return train(request(training, tmp_path_factory.mktemp("short"), "short", **SHORT))


@pytest.fixture(scope="session")
def features_folder(tmp_path_factory):
    """Where the feature cache of `cached` lies."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def cached(ray_here, training, features_folder, tmp_path_factory):
    """The short training by one worker, which made the feature cache."""
    from tests.cluster.test_trainer import SHORT, request, train

    asked = request(training, tmp_path_factory.mktemp("cached"), "cached", workers=1, features=True, **SHORT)
    return train(replace(asked, features=str(features_folder)))
