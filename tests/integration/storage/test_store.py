"""The store on a local disk, on a real S3-compatible server, and on another file system of fsspec."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mgpt.storage import Manifest, Store, write_atomic
from mgpt.storage.s3 import s3_options


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return Store(f"memory://{tmp_path.name}/prefix")
    return Store(str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("bucket") + "/prefix")


def test_write_replaces_content(store: Store) -> None:
    uri = store.uri("a", "b/c.bin")
    store.write(uri, b"one")
    store.write(uri, b"two")
    assert store.read(uri) == b"two"
    assert store.exists(uri)
    assert store.exists(store.uri("a"))
    assert not store.exists(store.uri("a", "d"))


def test_list_and_delete_stay_below_a_folder(store: Store) -> None:
    for name in ("runs/1/x", "runs/1/deep/y", "runs/10/z"):
        store.write(store.uri(name), b".")
    assert store.list(store.uri("runs/1")) == [store.uri("runs/1/deep/y"), store.uri("runs/1/x")]
    store.delete(store.uri("runs/1"))
    assert store.list(store.uri("runs")) == [store.uri("runs/10/z")]
    store.delete(store.uri("never"))


def test_delete_outside_the_root_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="outside the store"):
        store.delete(store.root + "-neighbour/file")


def test_failed_write_keeps_old_content(store: Store) -> None:
    uri = store.uri("file")
    store.write(uri, b"old")
    with pytest.raises(RuntimeError, match="half"):
        _break_off(store, uri)
    assert store.read(uri) == b"old"
    assert store.list(store.root) == [uri]


def _break_off(store: Store, uri: str) -> None:
    with store.open(uri, "wb") as file:
        file.write(b"new" * 4_000_000)
        raise RuntimeError("half way")


def test_folder_round_trip(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(b"a" * 3_000_000)
    (tmp_path / "in" / "deep" / "b").write_bytes(b"b")
    store.put_folder(tmp_path / "in", store.uri("folder"))
    store.fetch_folder(store.uri("folder"), tmp_path / "out")
    assert {
        path.relative_to(tmp_path / "out").as_posix(): path.stat().st_size
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    } == {
        "a": 3_000_000,
        "deep/b": 1,
    }
    with pytest.raises(FileNotFoundError):
        store.fetch_folder(store.uri("nothing"), tmp_path / "none")


def test_put_if_absent_has_one_winner(store: Store) -> None:
    uri, start, won = store.uri("claim"), threading.Barrier(8), []

    def claim(number: int) -> None:
        start.wait()
        if store.put_if_absent(uri, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [store.read(uri)]


def test_manifest_finds_one_altered_byte(store: Store, tmp_path: Path) -> None:
    for name in ("x", "y"):
        store.write(store.uri(name), name.encode() * 100)
    manifest = Manifest([store.entry(name, store.uri(name), rows=1) for name in ("y", "x")])
    manifest.save(tmp_path / "manifest.json")
    again = Manifest.load(tmp_path / "manifest.json")
    assert again == manifest
    again.verify()
    store.write(store.uri("y"), b"y" * 99 + b"z")
    with pytest.raises(ValueError, match="1 of 2 files differ") as caught:
        again.verify()
    assert "y:" in str(caught.value)
    assert "x:" not in str(caught.value)


def test_manifest_digest_ignores_location(tmp_path: Path) -> None:
    digests = []
    for place in ("one", "two"):
        store = Store(str(tmp_path / place))
        store.write(store.uri("x"), b"same")
        digests.append(Manifest([store.entry("x", store.uri("x"), rows=1)]).digest)
    assert digests[0] == digests[1]
    store.write(store.uri("x"), b"else")
    assert Manifest([store.entry("x", store.uri("x"), rows=1)]).digest != digests[0]


def test_edited_manifest_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(store.uri("x"), b"1")
    path = tmp_path / "manifest.json"
    Manifest([store.entry("x", store.uri("x"))]).save(path)
    path.write_text(path.read_text().replace('"size": 1', '"size": 2'))
    with pytest.raises(ValueError, match="edited"):
        Manifest.load(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no manifest"):
        Manifest.load(path)


def test_entry_has_the_object_version(bucket: str) -> None:
    import boto3

    name = bucket.removeprefix("s3://")
    boto3.client("s3").put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    store = Store(bucket)
    store.write(store.uri("x"), b"1")
    first = store.entry("x", store.uri("x"))
    store.write(store.uri("x"), b"2")
    assert first.version_id
    assert store.entry("x", store.uri("x")).version_id != first.version_id


@pytest.mark.parametrize("parts", [("..", "x"), ("/etc", "passwd"), ("a/../../b",)])
def test_uri_stays_in_the_store(parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves the store"):
        Store(str(tmp_path)).uri(*parts)


@pytest.mark.parametrize(
    ("root", "cause"),
    [("s3://", "no bucket"), ("https://host/x", "scheme"), ("nonsense://x", "scheme"), ("gs://bucket", "gcsfs")],
)
def test_unusable_root_is_refused(root: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgpt.storage.filesystem.find_spec", lambda name: None if name == "gcsfs" else name)
    with pytest.raises(ValueError, match=rf"storage\.root.*{cause}"):
        Store(root)


def test_folder_keys_of_a_bucket_are_no_files(bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="data/", Body=b"")
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="data/deep/", Body=b"")
    store = Store(bucket)
    store.write(store.uri("data", "x"), b"1")
    assert store.list(store.uri("data")) == [store.uri("data", "x")]


def test_server_without_conditional_writes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://overwrites")
    monkeypatch.setattr("mgpt.storage.filesystem.create_remote", lambda uri, data: True)
    with pytest.raises(ValueError, match="conditional writes"):
        store.put_if_absent(store.uri("x"), b"1")


def test_s3_options_follow_the_environment() -> None:
    options = s3_options({"AWS_ENDPOINT_URL": "http://a", "AWS_PROFILE": "p", "AWS_REGION": "r", "AWS_CA_BUNDLE": "c"})
    assert options["endpoint_url"] == "http://a"
    assert options["profile"] == "p"
    assert options["client_kwargs"] == {"region_name": "r", "verify": "c"}
    assert s3_options({"AWS_ENDPOINT_URL": "a", "AWS_ENDPOINT_URL_S3": "b"})["endpoint_url"] == "b"


def test_check_names_the_cause(tmp_path: Path, s3_environment: dict[str, str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="permissions and space"):
        Store(str(tmp_path / "file")).check()
    with pytest.raises(ValueError, match="the bucket exists"):
        Store("s3://no-such-bucket-here").check()
    Store(str(tmp_path)).check()


def test_atomic_write_leaves_no_parts(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "file", b"1")
    write_atomic(tmp_path / "new" / "file", b"2")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_unfinished_local_write_is_not_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(store.uri("done"), b"1")
    with store.open(store.uri("half"), "wb") as file:
        file.write(b"2")
        assert store.list(store.root) == [store.uri("done")]
    assert store.list(store.root) == [store.uri("done"), store.uri("half")]
