"""Fixtures of this folder."""

from tests.fixtures.config import *  # noqa: F403
