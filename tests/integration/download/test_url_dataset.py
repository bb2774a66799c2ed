"""Shards of URL lists, and their failures."""

import io
import json
import tarfile

import pytest
from PIL import Image

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.download import DownloadError, download
from mgpt.storage import Store

FAST = DownloadSettings(backoff_seconds=0.001, attempts=2, images_per_shard=4)


def image(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (number, 0, 0)).save(file, "PNG" if number % 2 else "JPEG")
    return file.getvalue()


@pytest.fixture
def listed(web, tmp_path):
    web.files |= {f"/p/{n}": image(n) for n in range(9)}
    rows = [{"url": f"{web.url}/p/{n}", "caption": f"image {n}"} for n in range(10)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    return SourceSettings(kind="url-list", locations=(str(tmp_path / "list.json"),), success_floor=0.9)


def members(store, entry):
    with tarfile.open(fileobj=io.BytesIO(store.read(entry.uri))) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_shards_hold_images_captions_and_records(listed, web, tmp_path):
    store = Store(str(tmp_path / "store"))
    found = download({"web": listed}, FAST, store, print)
    assert [(entry.name, entry.meta["files"]) for entry in found.manifest.entries] == [
        ("web/list/00000.tar", 4), ("web/list/00001.tar", 4), ("web/list/00002.tar", 2),
    ]  # fmt: skip
    first = members(store, found.manifest.entries[0])
    assert sorted(first)[:3] == ["000000000.jpg", "000000000.json", "000000000.txt"]
    assert first["000000001.png"] == image(1)
    assert json.loads(first["000000001.json"])["caption"] == "image 1"
    assert found.metrics["web"]["failed"] == 1
    assert "HTTP 404" in found.items[2].reason


def test_only_failed_urls_are_fetched_again(listed, web, tmp_path):
    store = Store(str(tmp_path / "store"))
    web.files["/p/3"] = b"<html>gone</html>"
    with pytest.raises(DownloadError, match=r"success 0\.800 .*\n.*not an image"):
        download({"web": listed}, FAST, store, print)
    web.files |= {"/p/3": image(3), "/p/9": image(9)}
    web.requests.clear()
    again = download({"web": listed}, FAST, store, print)
    assert {path for path, _ in web.requests} == {"/p/3", "/p/9"}
    whole = download({"web": listed}, FAST, Store(str(tmp_path / "other")), print)
    assert again.manifest.digest == whole.manifest.digest


@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv", "parquet"])
def test_list_formats_read_the_same(kind, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mgpt.download.url_dataset import read_list

    path = tmp_path / f"list.{kind}"
    rows = [{"url": "http://a/1", "caption": "one, two"}, {"url": "http://a/2", "caption": "drei\u00e4"}]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        mark = "\t" if kind == "tsv" else ","
        path.write_text(
            "\n".join([f"url{mark}caption", *(f'{row["url"]}{mark}"{row["caption"]}"' for row in rows)]),
            encoding="utf-8",
        )
    assert [(row.key, row.url, row.caption) for row in read_list(path, path.name)] == [
        ("000000000", "http://a/1", "one, two"), ("000000001", "http://a/2", "drei\u00e4"),
    ]  # fmt: skip


def test_list_without_captions_is_rejected(tmp_path):
    from mgpt.download.url_dataset import read_list

    (tmp_path / "list.jsonl").write_text('{"url": "x"}')
    with pytest.raises(ValueError, match=r"row 0 has no url and caption"):
        list(read_list(tmp_path / "list.jsonl", "list.jsonl"))
