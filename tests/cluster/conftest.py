import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ray_here():
    """A Ray of this test session's own."""
    os.environ["PYTHONPATH"] = str(ROOT)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """(bases, manifest) of small trainings."""
    from mgpt.storage import Store
    from tests.fixtures_train import make_bases, make_data

    folder = tmp_path_factory.mktemp("training")
    return make_bases(folder / "bases"), make_data(Store(str(folder / "store")))
