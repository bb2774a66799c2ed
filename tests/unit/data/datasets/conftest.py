"""Fixtures of this folder."""

from tests.fixtures.datasets import *  # noqa: F403
