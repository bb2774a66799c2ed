"""Fixtures of the settings' tests."""

from tests.fixtures.config import *  # noqa: F403
