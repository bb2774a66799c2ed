"""Fixtures of this folder."""

from tests.fixtures.models import *  # noqa: F403
