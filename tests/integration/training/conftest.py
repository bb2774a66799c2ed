"""Fixtures of this folder."""

from tests.fixtures.training import *  # noqa: F403
