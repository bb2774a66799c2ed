"""Fixtures of this folder."""

from tests.fixtures.evaluation import *  # noqa: F403
