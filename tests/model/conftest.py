from __future__ import annotations

import pytest

from tests.model import tiny


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Folders of tiny random bases; not to be changed."""
    return tiny.write_bases(tmp_path_factory.mktemp("bases"))
