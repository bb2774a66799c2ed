"""Fixtures of this folder."""

from tests.fixtures.serving import *  # noqa: F403
