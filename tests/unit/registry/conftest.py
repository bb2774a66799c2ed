"""Fixtures of this folder's tests."""

from tests.fixtures.registry_store import *  # noqa: F403
