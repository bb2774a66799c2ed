"""Fixtures of this folder's tests."""

from tests.fixtures.web import *  # noqa: F403
