"""One browser for all tests of pages; without Chromium or Chrome they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures.browser import EXECUTABLE, Browser, running


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A running headless browser."""
    if EXECUTABLE is None:
        pytest.skip("no Chromium or Chrome on this machine (Debian: apt-get install chromium)")
    with running(tmp_path_factory.mktemp("profile")) as one:
        yield one
