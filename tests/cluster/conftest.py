import pytest


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """(bases, manifest) of small trainings."""
    from mgpt.storage import Store
    from tests.fixtures_train import make_bases, make_data

    folder = tmp_path_factory.mktemp("training")
    return make_bases(folder / "bases"), make_data(Store(str(folder / "store")))
