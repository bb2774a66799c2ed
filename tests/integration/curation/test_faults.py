"""Curation of data on faulty servers."""

import hashlib
import io
import json
import tarfile

import pytest

from mgpt.config.sources import CurateSettings, DatasetSettings, DownloadSettings, SourceSettings
from mgpt.curation import curate
from mgpt.download import download
from mgpt.storage import Store
from tests.fixtures.faulty import Faults
from tests.fixtures.worlds import card, encoded, photo

IMAGES = 30


def shard(first: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(first, first + IMAGES):
            for name, data in (
                (f"{number:09d}.jpg", encoded(photo(number, (160, 120)))),
                (f"{number:09d}.txt", b"an image of %d" % number),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def published(web) -> SourceSettings:
    """Returns a source of a webdataset shard and of records with single images, one of which is missing."""
    own = [{"image": f"{number}.jpg", "caption": f"words about {number}"} for number in range(IMAGES)]
    web.files |= {f"/own/{number}.jpg": encoded(photo(100 + number)) for number in range(IMAGES - 1)}
    web.files |= {
        "/own/train.jsonl": "".join(json.dumps(row) + "\n" for row in own).encode(),
        "/web/00000.tar": shard(200),
    }
    names = tuple(sorted(path.removeprefix("/") for path in web.files))
    datasets = {
        "own": DatasetSettings(reader="jsonl", root="own"),
        "laion": DatasetSettings(reader="laion", root="web"),
    }
    return SourceSettings(locations=(f"{web.url}/",), include=names, datasets=datasets)


def digests(store: Store, folder: str) -> dict[str, str]:
    prefix = store.uri(folder)
    return {uri.removeprefix(prefix): hashlib.sha256(store.read(uri)).hexdigest() for uri in store.list(prefix)}


def quiet(line: str) -> None:
    pass


def test_faulty_servers_give_same_shards(web, faulty_s3):
    sources, settings = {"all": published(web)}, CurateSettings(workers=0)
    outputs = []
    for folder, share in (("good", 0.0), ("bad", 0.05)):
        store = Store(f"{faulty_s3.bucket}/{folder}")
        faulty_s3.failing, faulty_s3.faults, web.faults = (
            ("GET", "PUT", "HEAD"),
            Faults(share, seed=3),
            Faults(share, seed=11),
        )
        manifest = download(
            sources, DownloadSettings(backoff_seconds=0.001, attempts=8, bundle_files=10**6), store, quiet
        ).manifest
        found = curate(manifest, sources, settings, store, store.uri("curated"), quiet)
        injected = faulty_s3.faults.injected, web.faults.injected
        faulty_s3.faults = Faults(0.0)
        outputs.append(
            (
                manifest.digest,
                found.manifest.digest,
                found.quarantine.digest,
                found.report,
                card(found),
                digests(store, "curated"),
            )
        )
    assert min(injected) > 0
    assert outputs[0][3]["kept"] == 2 * IMAGES - 1
    assert outputs[0] == outputs[1]


def test_server_down_fails_without_rejecting_records(web, faulty_s3):
    """The stage fails, rejects no record, and resumes when the server is back."""
    sources, settings = {"all": published(web)}, CurateSettings(workers=0)
    store = Store(f"{faulty_s3.bucket}/store")
    manifest = download(sources, DownloadSettings(bundle_files=10**6), store, quiet).manifest
    expected = curate(manifest, sources, settings, store, store.uri("expected"), quiet)
    faulty_s3.responses_left = 12
    with pytest.raises(OSError, match=r"503|busy|Unavailable"):
        curate(manifest, sources, settings, store, store.uri("interrupted"), quiet)
    faulty_s3.responses_left = -1
    again = curate(manifest, sources, settings, store, store.uri("interrupted"), quiet)
    assert again.report == expected.report
    assert digests(store, "interrupted") == digests(store, "expected")
