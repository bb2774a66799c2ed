"""Fixtures of this folder."""

from tests.fixtures.registry_store import *  # noqa: F403
