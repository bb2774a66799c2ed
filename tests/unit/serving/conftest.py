"""Fixtures of this folder's tests."""

from tests.fixtures.serving import *  # noqa: F403
