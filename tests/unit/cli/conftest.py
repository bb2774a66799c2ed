"""Fixtures of the command line's tests."""

from tests.fixtures.config import *  # noqa: F403
from tests.fixtures.models import *  # noqa: F403
