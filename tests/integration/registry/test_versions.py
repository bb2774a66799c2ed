"""Versions, their aliases, and references to their weights."""

import pytest

from mgpt.registry.versions import all_versions, find, versions
from mgpt.tracking.client import connect
from tests.fixtures.registry import MODEL


def test_aliases_are_joined_on_sql_stores(registry):
    registry.promote(0)
    registry.promote(1)
    client = connect(registry.uri)
    client.set_registered_model_alias(MODEL, "candidate", "1")
    found = [(version.number, version.aliases) for version in versions(client, MODEL)]
    assert found == [(1, ("candidate",)), (2, ("champion",))]
    assert [version.model for version in all_versions(client)] == [MODEL, MODEL]
    assert versions(client, "unknown") == []
    by_alias, by_number = (find(registry.uri, f"models:/{MODEL}{suffix}") for suffix in ("@candidate", "/1"))
    assert by_alias.number == by_number.number == 1


def test_unknown_version_is_refused_with_existing_ones(registry):
    with pytest.raises(ValueError, match="there is none, run the promote stage"):
        find(registry.uri, f"models:/{MODEL}@champion")
    registry.promote(0)
    with pytest.raises(ValueError, match=r"there is 1 \(champion\)"):
        find(registry.uri, f"models:/{MODEL}/7")
    with pytest.raises(ValueError, match="write models:/NAME@champion"):
        find(registry.uri, "models:/")


def test_foreign_version_has_no_weights(registry):
    client = connect(registry.uri)
    client.create_registered_model("mine")
    client.create_model_version("mine", source="s3://no-such-bucket/weights")  # MLflow reports it as READY
    with pytest.raises(ValueError, match="mine version 1 was not registered by the promote stage"):
        _ = find(registry.uri, "models:/mine/1").weights
