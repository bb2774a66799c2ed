"""References to trained weights: locations that survive a move of the store."""

from importlib import resources

import pytest

from mgpt.storage import Store
from mgpt.storage.weights import open_weights, portable_location, resolve_location, store_weights


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights" / "sub").mkdir(parents=True)
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "weights" / "sub" / "part.bin").write_bytes(b"bytes")
    return tmp_path / "weights"


def test_locations_are_relative_inside_store_and_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local, remote = Store("store"), Store("s3://bucket/root")
    shipped = f"{resources.files('mgpt')}/models/shapes/vision"
    expected = {
        "store/sources/b/vision": (local, "sources/b/vision"),
        f"{tmp_path}/store/sources/b": (local, "sources/b"),
        "elsewhere/vision": (local, f"{tmp_path}/elsewhere/vision"),
        "s3://bucket/root/sources/b": (remote, "sources/b"),
        "s3://bucket/other": (remote, "s3://bucket/other"),
        shipped: (local, "package://mgpt/models/shapes/vision"),
    }
    assert {uri: (store, portable_location(uri, store)) for uri, (store, _) in expected.items()} == expected


def test_relative_locations_resolve_in_any_store(tmp_path):
    store = Store(str(tmp_path))
    assert resolve_location("sources/b", store) == f"{tmp_path}/sources/b"
    assert resolve_location("sources/b", Store("s3://bucket/root")) == "s3://bucket/root/sources/b"
    assert resolve_location("/somewhere/else", store) == "/somewhere/else"
    assert resolve_location("s3://bucket/other", store) == "s3://bucket/other"
    shipped = resolve_location("package://mgpt/models/shapes/vision", store)
    assert shipped == f"{resources.files('mgpt')}/models/shapes/vision"


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_stored_weights_open_verified(kind, folder, tmp_path, request):
    store = Store(str(tmp_path / "store") if kind == "local" else f"{request.getfixturevalue('bucket')}/root")
    reference = store_weights(folder, "minigpt-v2", {}, store)
    assert reference == store_weights(folder, "minigpt-v2", {}, store)
    with open_weights(reference, store) as opened:
        assert (opened / "sub" / "part.bin").read_bytes() == b"bytes"
    store.write(f"{store.uri(reference.weights)}/config.json", b"[]")
    with pytest.raises(ValueError, match="altered"), open_weights(reference, store):
        pass
    with pytest.raises(ValueError, match="altered"):
        store_weights(folder, "minigpt-v2", {}, store)
    store.delete(store.uri(reference.weights))
    with pytest.raises(ValueError, match="gone"), open_weights(reference, store):
        pass
