"""Fixtures of this folder."""

from tests.fixtures.execution import *  # noqa: F403
