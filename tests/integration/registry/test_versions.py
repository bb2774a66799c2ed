import pytest

from mgpt.registry.versions import absolute_backbones, find, models, stored_manifest, versions
from mgpt.tracking.client import connect
from tests.fixtures.registry import SYSTEM


def test_aliases_are_joined_on_a_store_that_does_not_give_them(registry):
    registry.promote(0)
    registry.promote(1)
    client = connect(registry.uri)
    client.set_registered_model_alias(SYSTEM, "candidate", "1")
    assert [(version.number, version.aliases) for version in versions(client, SYSTEM)] == [
        (1, ("candidate",)),
        (2, ("champion",)),
    ]
    assert [version.model for version in models(client)] == [SYSTEM, SYSTEM]
    assert versions(client, "unknown") == []
    assert (
        find(registry.uri, f"models:/{SYSTEM}@candidate").number
        == find(registry.uri, f"models:/{SYSTEM}/1").number
        == 1
    )


def test_what_is_not_registered_is_refused_with_what_there_is(registry):
    with pytest.raises(ValueError, match="there is none, run the promote stage"):
        find(registry.uri, f"models:/{SYSTEM}@champion")
    registry.promote(0)
    with pytest.raises(ValueError, match=r"there is 1 \(champion\)"):
        find(registry.uri, f"models:/{SYSTEM}/7")
    with pytest.raises(ValueError, match="write models:/NAME@champion"):
        find(registry.uri, "models:/")


def test_a_version_made_by_hand_has_no_recipe(registry):
    client = connect(registry.uri)
    client.create_registered_model("mine")
    client.create_model_version("mine", source="s3://no-such-bucket/weights")  # MLflow calls it READY
    with pytest.raises(ValueError, match="mine version 1 was not registered by the promote stage"):
        _ = find(registry.uri, "models:/mine/1").recipe


def test_a_manifest_that_is_gone_or_another_is_refused(registry):
    registry.promote(0)
    registry.promote(1)
    first, second = (find(registry.uri, f"models:/{SYSTEM}/{number}").recipe for number in (1, 2))
    registry.store.write(f"{first.weights}.json", registry.store.read(f"{second.weights}.json"))
    with pytest.raises(ValueError, match=f"{first.digest[:12]} was registered"):
        stored_manifest(first)
    registry.store.delete(f"{first.weights}.json")
    with pytest.raises(ValueError, match="is gone"):
        stored_manifest(first)


def test_folders_of_backbones_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_backbones({"vision": "backbones/v", "language": "s3://b/l"}) == {
        "vision": str(tmp_path / "backbones/v"),
        "language": "s3://b/l",
    }
