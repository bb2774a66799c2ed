"""Fixtures of this folder."""

from tests.fixtures.web import *  # noqa: F403
