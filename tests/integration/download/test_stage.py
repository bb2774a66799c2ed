"""Download stage: kinds of locations, faults and kills."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.data.extract import source_folder
from mgpt.download import DownloadError, download
from mgpt.storage import Store
from tests.fixtures.faulty import Faults

FAST = DownloadSettings(backoff_seconds=0.001, attempts=8)


def quiet(line: str) -> None:
    pass


def contents(store: Store, prefix: str = "") -> dict[str, str]:
    root = store.uri(prefix) if prefix else store.root
    found = {uri.removeprefix(store.root): hashlib.sha256(store.read(uri)).hexdigest() for uri in store.list(root)}
    return {name: digest for name, digest in found.items() if "/status/" not in name and "/spool/" not in name}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "origin"
    (root / "images").mkdir(parents=True)
    for number in range(100):
        (root / "images" / f"{number:03d}.png").write_bytes(random.Random(number).randbytes(500))
    (root / "captions.json").write_text("[]")
    (root / ".hidden").write_text("no")
    return root


def test_folder_is_bundled_and_extracted_unchanged(folder, tmp_path):
    store = Store(str(tmp_path / "store"))
    found = download({"own": SourceSettings(locations=(str(folder),), licence="CC0-1.0")}, FAST, store, quiet)
    assert [(entry.name, entry.meta["files"]) for entry in found.manifest.entries] == [
        ("own/captions.json", 1),
        ("own/images/00000.bundle.tar", 100),
    ]
    assert {entry.meta["licence"] for entry in found.manifest.entries} == {"CC0-1.0"}
    assert found.metrics["own"]["success_rate"] == 1.0
    found.manifest.verify()
    opened, refused = source_folder(found.manifest, "own", store)
    assert refused == []
    for path in (folder / "images").iterdir():
        assert (Path(opened) / "images" / path.name).read_bytes() == path.read_bytes()
    assert not (Path(opened) / ".hidden").exists()


def test_saved_items_have_status_and_time(folder, tmp_path):
    found = download({"own": SourceSettings(locations=(str(folder),))}, FAST, Store(str(tmp_path / "store")), quiet)
    found.save(tmp_path / "out")
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    assert [(item["status"], item["files"]) for item in items] == [("ok", 1), ("ok", 100)]
    assert all(item["when"].startswith("20") and len(item["sha256"]) == 64 for item in items)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["own"]["files"] == 101


def test_only_changed_file_is_fetched_again(folder, tmp_path):
    store, source = Store(str(tmp_path / "store")), {"own": SourceSettings(locations=(str(folder),))}
    first = download(source, FAST, store, quiet)
    (folder / "captions.json").write_text('["more"]')
    second = download(source, FAST, store, quiet)
    assert [entry.sha256 for entry in first.manifest.entries][1] == [entry.sha256 for entry in second.manifest.entries][
        1
    ]
    assert first.manifest.digest != second.manifest.digest
    assert [item.when for item in first.items][1] == [item.when for item in second.items][1]


def test_run_after_missed_floor_fetches_only_failures(web, tmp_path):
    web.files |= {f"/set/{n}.json": str(n).encode() for n in range(9)}
    names = tuple(f"{n}.json" for n in range(10))
    source = {"web": SourceSettings(locations=(f"{web.url}/set/",), include=names, success_floor=0.95)}
    store = Store(str(tmp_path / "store"))
    with pytest.raises(
        DownloadError, match=r"sources\.web: success 0\.900 is below its floor 0\.95[\s\S]*9\.json: .*HTTP 404"
    ):
        download(source, FAST, store, quiet)
    web.files["/set/9.json"] = b"late"
    web.requests.clear()
    found = download(source, FAST, store, quiet)
    assert [path for path, _ in web.requests] == ["/set/9.json"]
    assert len(found.manifest.entries) == 10


def test_added_mirror_keeps_stored_files(web, tmp_path):
    web.files |= {"/a/one.json": b"1", "/b/one.json": b"1", "/b/two.json": b"2"}
    store, include = Store(str(tmp_path / "store")), ("one.json", "two.json")
    with pytest.raises(DownloadError):
        download({"web": SourceSettings(locations=(f"{web.url}/a/",), include=include)}, FAST, store, quiet)
    web.requests.clear()
    both = SourceSettings(locations=(f"{web.url}/a/", f"{web.url}/b/"), include=include)
    assert len(download({"web": both}, FAST, store, quiet).manifest.entries) == 2
    assert [path for path, _ in web.requests] == ["/a/two.json", "/b/two.json"]


def test_published_checksums_are_verified(tmp_path):
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "weights.bin").write_bytes(b"good")
    (origin / "SHA256SUMS").write_text(f"{hashlib.sha256(b'good').hexdigest()}  weights.bin\n")
    source = {"backbones": SourceSettings(kind="backbones", locations=(str(origin),))}
    assert len(download(source, FAST, Store(str(tmp_path / "one")), quiet).manifest.entries) == 2
    (origin / "weights.bin").write_bytes(b"evil")
    with pytest.raises(DownloadError, match=r"weights\.bin: .*not the declared"):
        download(source, DownloadSettings(attempts=1), Store(str(tmp_path / "two")), quiet)
    (origin / "weights.bin").unlink()
    with pytest.raises(ValueError, match=r"SHA256SUMS names files that are not there: weights\.bin"):
        download(source, FAST, Store(str(tmp_path / "three")), quiet)


def test_missing_location_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sources\.x: no file matches include \['\*'\]: .*nowhere does not exist"):
        download(
            {"x": SourceSettings(locations=(str(tmp_path / "nowhere"),))}, FAST, Store(str(tmp_path / "store")), quiet
        )


def test_faulty_web_server_gives_same_store(web, tmp_path):
    web.files |= {f"/set/{n}.bin": random.Random(n).randbytes(20_000) for n in range(60)}
    source = {"web": SourceSettings(locations=(f"{web.url}/set/",), include=tuple(f"{n}.bin" for n in range(60)))}
    good, bad = Store(str(tmp_path / "good")), Store(str(tmp_path / "bad"))
    expected = download(source, FAST, good, quiet)
    web.faults = Faults(0.05, seed=11)
    found = download(source, FAST, bad, quiet)
    assert web.faults.injected > 0
    assert found.manifest.digest == expected.manifest.digest
    assert contents(bad) == contents(good)


def test_faulty_s3_server_gives_same_store(faulty_s3, tmp_path):
    origin = Store(f"{faulty_s3.bucket}/origin")
    for number in range(40):
        origin.write(origin.uri("set", f"{number}.bin"), random.Random(number).randbytes(5_000))
    source = {"s3": SourceSettings(locations=(f"{faulty_s3.bucket}/origin/set",))}
    good, bad = Store(str(tmp_path / "good")), Store(str(tmp_path / "bad"))
    expected = download(source, FAST, good, quiet)
    faulty_s3.faults = Faults(0.05, seed=5)
    found = download(source, FAST, bad, quiet)
    assert faulty_s3.faults.injected > 0
    assert len(expected.manifest.entries) == 40
    assert found.manifest.digest == expected.manifest.digest
    assert contents(bad) == contents(good)


def test_store_in_a_bucket(faulty_s3, folder):
    store = Store(f"{faulty_s3.bucket}/store")
    found = download({"own": SourceSettings(locations=(str(folder),))}, FAST, store, quiet)
    assert all(entry.uri.startswith("s3://") for entry in found.manifest.entries)
    found.manifest.verify()
    opened, _ = source_folder(found.manifest, "own", store)
    assert len(list((Path(opened) / "images").iterdir())) == 100


SCRIPT = """
    import sys
    from mgpt.download import download
    from mgpt.config.sources import DownloadSettings, SourceSettings
    from mgpt.storage import Store
    url, store, out = sys.argv[1:]
    names = tuple(f"{n}.bin" for n in range(60))
    source = {"web": SourceSettings(locations=(url,), include=names)}
    print("ready", flush=True)
    download(source, DownloadSettings(parallel=4, backoff_seconds=0.001), Store(store)).manifest.save(out)
"""


def test_killed_runs_give_same_store(web, tmp_path):
    web.files |= {f"/set/{n}.bin": random.Random(n).randbytes(200_000) for n in range(60)}
    source = {"web": SourceSettings(locations=(f"{web.url}/set/",), include=tuple(f"{n}.bin" for n in range(60)))}
    uninterrupted = Store(str(tmp_path / "uninterrupted"))
    expected = download(source, FAST, uninterrupted, quiet)
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(SCRIPT),
        f"{web.url}/set/",
        str(tmp_path / "killed"),
        str(tmp_path / "manifest.json"),
    ]
    delays = random.Random(4)
    killed = 0
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delays.uniform(0.005, 0.06))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    assert killed > 0
    resumed = Store(str(tmp_path / "killed"))
    assert contents(resumed) == contents(uninterrupted)
    assert json.loads((tmp_path / "manifest.json").read_text())["digest"] == expected.manifest.digest


def test_import_is_light():
    code = "import sys, mgpt.download; assert not {'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules), sorted(sys.modules)"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
