"""Damaged images, records and archives: rejected with a reason, or repaired."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mgpt.config.sources import DatasetSettings, SourceSettings
from mgpt.data.types import Sample
from mgpt.storage import Store
from tests.fixtures.worlds import encoded, own_source, photo, rejected, rows, run, write_own

CAPTION = "a plain image"


def png_header(width, height):
    """Returns a PNG whose header claims the size and whose data holds one row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(width * 3 + 1)))
        + chunk(b"IEND", b"")
    )


def animated(kind):
    return encoded(photo(1), kind, save_all=True, append_images=[photo(2), photo(3)])


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(4), "JPEG", exif=exif, quality=95)


def sixteen_bit():
    return encoded(Image.fromarray((np.arange(40 * 48).reshape(40, 48) * 34).astype(np.uint16)), "PNG")


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


GOOD = encoded(photo(0))
PNG = encoded(photo(0), "PNG")
# image file, and its reject reason or repair ("" if it is kept unchanged)
IMAGES = {
    "truncated jpeg": (GOOD[: len(GOOD) // 2], "damaged image"),
    "jpeg without its last rows": (encoded(photo(9, (200, 200)), quality=95)[:-400], "damaged image"),
    "truncated png": (PNG[: len(PNG) // 2], "damaged image"),
    "png with a wrong checksum": (flipped(PNG, 60), "damaged image"),
    "truncated webp": (encoded(photo(0), "WEBP")[:60], "damaged image"),
    "truncated gif": (encoded(photo(0), "GIF")[:-300], "damaged image"),
    "zero bytes": (b"", "empty file"),
    "only a jpeg header": (GOOD[:20], "not an image"),
    "decompression bomb": (png_header(60_000, 60_000), "too many pixels"),
    "bomb below the library's limit": (png_header(9_000, 9_000), "too many pixels"),
    "svg in a .jpg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>', "not an image"),
    "html in a .jpg": (b"<!doctype html><html>404 not found</html>", "not an image"),
    "text in a .jpg": (b"this is not an image at all", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    "zip in a .jpg": (b"PK\x03\x04" + bytes(50), "not an image"),
    "random bytes": (np.random.default_rng(0).bytes(500), "not an image"),
    "animated gif": (animated("GIF"), "animated image"),
    "animated png": (animated("PNG"), "animated image"),
    "animated webp": (animated("WEBP"), "animated image"),
    "several tiff pages": (animated("TIFF"), "animated image"),
    "too small": (encoded(photo(1, (8, 40))), "too small"),
    "one pixel": (encoded(photo(1, (1, 1)), "PNG"), "too small"),
    "extreme aspect": (encoded(photo(1, (2000, 20))), "extreme aspect"),
    "cmyk": (encoded(photo(5).convert("CMYK")), "colour space"),
    "16-bit png": (sixteen_bit(), "16-bit"),
    "transparent png": (encoded(photo(6).convert("RGBA"), "PNG"), "transparency"),
    "exif orientation": (oriented(6), "orientation"),
    "palette": (encoded(photo(7).quantize(16), "PNG"), ""),
    "grey jpeg": (encoded(photo(8).convert("L")), ""),
    "bilevel": (encoded(photo(10).convert("1"), "PNG"), ""),
    "png in a .jpg": (encoded(photo(11), "PNG"), ""),
    "bmp in a .jpg": (encoded(photo(12), "BMP"), ""),
    "jpeg with trailing bytes": (encoded(photo(13)) + b"trailing", ""),
}
# record of the JSONL, and its reject reason
LINES = {
    "missing image": ({"image": "images/none.jpg", "caption": CAPTION}, "missing image"),
    "path traversal": ({"image": "../../etc/passwd", "caption": CAPTION}, "path outside the dataset's folder"),
    "absolute path": ({"image": "/etc/passwd", "caption": CAPTION}, "path outside the dataset's folder"),
    "box outside the image": (
        {"image": "images/good.jpg", "expression": "it", "box": [0, 0, 99, 30]},
        "box outside the image",
    ),
    "box with negative corner": (
        {"image": "images/good.jpg", "expression": "it", "box": [-9, 0, 20, 30]},
        "box outside the image",
    ),
    "box reversed": ({"image": "images/good.jpg", "expression": "it", "box": [30, 0, 10, 30]}, "box reversed"),
    "box not a number": (
        {"image": "images/good.jpg", "expression": "it", "box": [float("nan"), 0, 10, 30]},
        "box not finite",
    ),
    "box infinite": (
        {"image": "images/good.jpg", "expression": "it", "box": [0, 0, float("inf"), 30]},
        "box not finite",
    ),
    "box without area": ({"image": "images/good.jpg", "expression": "it", "box": [10, 10, 10, 30]}, "box degenerate"),
    "box of three numbers": ({"image": "images/good.jpg", "expression": "it", "box": [1, 2, 3]}, "missing box"),
    "no caption": ({"image": "images/good.jpg"}, "missing field"),
    "caption not a text": ({"image": "images/good.jpg", "caption": 7}, "missing field"),
    "empty caption": ({"image": "images/good.jpg", "caption": "  "}, "missing answer"),
    "short caption": ({"image": "images/good.jpg", "caption": "ab"}, "caption too short"),
    "caption is a link": ({"image": "images/good.jpg", "caption": "https://example.org/a/b.html"}, "junk text"),
    "caption is a file name": ({"image": "images/good.jpg", "caption": "IMG_2041.JPG"}, "junk text"),
    "caption without letters": ({"image": "images/good.jpg", "caption": "2041 - 77 !!"}, "junk text"),
    "caption of one repeated letter": ({"image": "images/good.jpg", "caption": "a" * 60}, "junk text"),
    "caption of one repeated word": ({"image": "images/good.jpg", "caption": "buy " * 20}, "junk text"),
    "control characters": ({"image": "images/good.jpg", "caption": "an image\x00\x07 of it"}, "junk text"),
    "huge text": ({"image": "images/good.jpg", "caption": "word salad " * 5000}, "text too long"),
    "unknown key": ({"image": "images/good.jpg", "capton": CAPTION}, "unreadable record"),
    "box token without a box": ({"image": "images/good.jpg", "caption": "it is at <box:3>"}, "unreadable record"),
    "half a surrogate pair": ({"image": "images/good.jpg", "caption": "broken \ud800 text"}, "unreadable record"),
    "a list for a record": ([1, 2], "unreadable record"),
}
RAW = {
    "not json": (b"{not json}\n", "unreadable record"),
    "invalid utf-8": (b'{"image": "\xff\xfe"}\n', "unreadable record"),
}


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder, store = tmp_path_factory.mktemp("own"), Store(str(tmp_path_factory.mktemp("store")))
    names = {kind: f"images/{kind.replace(' ', '-')}.jpg" for kind in IMAGES}
    files = {names[kind]: data for kind, (data, _) in IMAGES.items()}
    lines = [{"image": names[kind], "caption": f"{CAPTION} of kind {number}"} for number, kind in enumerate(IMAGES)]
    lines += [line for line, _ in LINES.values()]
    lines += [{"image": "images/good.jpg", "caption": "the good one"}] * 2
    write_own(folder, lines, files | {"images/good.jpg": GOOD})
    with open(folder / "train.jsonl", "ab") as file:
        file.writelines(line for line, _ in RAW.values())
    settings = {"maximum_pixels": 50_000_000, "text_maximum_characters": 10_000}
    return run({"own": own_source(folder, duplicates="samples")}, store, **settings), store, names


def test_at_least_fifty_kinds_of_damage():
    assert len(IMAGES) + len(LINES) + len(RAW) >= 50


@pytest.mark.parametrize("kind", IMAGES)
def test_damaged_image(kind, curated):
    found, store, _ = curated
    number = list(IMAGES).index(kind) + 1
    reason = IMAGES[kind][1]
    went = [row["reason"] for row in rejected(found, store) if row["source"] == f"train.jsonl#{number}"]
    kept = [row for row in rows(found, store) if row["source"] == f"train.jsonl#{number}"]
    if reason and reason not in ("colour space", "16-bit", "transparency", "orientation"):
        assert went == [reason]
        assert kept == []
        return
    assert went == []
    image = Image.open(io.BytesIO(kept[0]["image"]))
    assert image.size == (kept[0]["width"], kept[0]["height"])
    if reason:
        assert image.mode == "RGB"
        assert found.report["repaired"][reason] == 1
    else:
        assert kept[0]["image"] == IMAGES[kind][0]


@pytest.mark.parametrize("kind", [*LINES, *RAW])
def test_damaged_record(kind, curated):
    found, store, _ = curated
    number = len(IMAGES) + 1 + (list(LINES).index(kind) if kind in LINES else len(LINES) + 2 + list(RAW).index(kind))
    assert [row["reason"] for row in rejected(found, store) if row["source"] == f"train.jsonl#{number}"] == [
        (LINES | RAW)[kind][1]
    ]


def test_records_are_kept_or_rejected(curated):
    found, store, _ = curated
    kept, went = rows(found, store), rejected(found, store)
    assert len(kept) + len(went) == found.report["records"] == len(IMAGES) + len(LINES) + len(RAW) + 2
    assert [row["reason"] for row in went].count("duplicate sample") == 1
    assert all(Sample.from_row(row).content_hash() == row["id"] for row in kept)


def test_colours_of_repaired_images():
    from mgpt.config.sources import CurateSettings
    from mgpt.curation.image_checks import check_image

    def pixels(data):
        return np.asarray(Image.open(io.BytesIO(check_image(data, CurateSettings()).data)).convert("RGB")).astype(int)

    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (pixels(encoded(clear, "PNG")) == 255).all(), "transparency is laid on white"
    grey = pixels(sixteen_bit())
    assert grey.min() == 0
    assert 240 < grey.max() <= 255, "16 bits are scaled, not cut"
    cmyk = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    red = pixels(encoded(cmyk))[10, 10]
    assert red[0] > 200 > 80 > max(red[1:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_follow_exif_orientation(orientation, tmp_path):
    plain = Image.new("RGB", (60, 40), (0, 0, 0))
    plain.paste((255, 255, 255), (10, 5, 30, 15))
    exif = Image.Exif()
    exif[0x0112] = orientation
    store = Store(str(tmp_path / "store"))
    record = {"image": "a.png", "expression": "the white one", "box": [10, 5, 30, 15]}
    write_own(tmp_path / "own", [record], {"a.png": encoded(plain, "PNG", exif=exif)})
    (row,) = rows(run({"own": own_source(tmp_path / "own")}, store), store)
    shown = np.asarray(Image.open(io.BytesIO(row["image"])).convert("L"))
    ys, xs = np.nonzero(shown > 128)
    assert row["boxes"] == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
    assert (row["width"], row["height"]) == ((60, 40) if orientation < 5 else (40, 60))


def test_slightly_outside_box_is_clipped(tmp_path):
    store = Store(str(tmp_path / "store"))
    write_own(tmp_path / "own", [{"image": "a.jpg", "expression": "it", "box": [-0.5, 0, 48.9, 40]}], {"a.jpg": GOOD})
    found = run({"own": own_source(tmp_path / "own")}, store)
    assert rows(found, store)[0]["boxes"] == [[0, 0, 48, 40]]
    assert found.report["repaired"] == {"box clipped": 1}


class Evil:
    def __reduce__(self):
        return (print, ("this code must never run",))


def test_damaged_archives_pickles_and_shards(tmp_path, capsys):
    folder, store = tmp_path / "files", Store(str(tmp_path / "store"))
    folder.mkdir()
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.writestr("own/train.jsonl", json.dumps({"image": "a.jpg", "caption": CAPTION}) + "\n")
        archive.writestr("own/a.jpg", GOOD)
        archive.writestr("../outside.jpg", GOOD)
        inner = io.BytesIO()
        zipfile.ZipFile(inner, "w").writestr("deep.jpg", GOOD)
        archive.writestr("own/nested.zip", inner.getvalue())
    (folder / "broken.zip").write_bytes((folder / "data.zip").read_bytes()[:200])
    (folder / "refcoco").mkdir()
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(Evil()))
    (folder / "refcoco" / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (folder / "laion").mkdir()
    with tarfile.open(folder / "laion" / "00000.tar", "w") as tar:
        for name, data in (
            ("000.jpg", GOOD),
            ("000.txt", b"a good pair"),
            ("001.txt", b"no image"),
            ("002.jpg", PNG),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / "laion" / "00001.tar").write_bytes((folder / "laion" / "00000.tar").read_bytes()[:700])
    source = SourceSettings(
        locations=(str(folder),),
        datasets={
            "own": DatasetSettings(reader="jsonl", root="own"),
            "refcoco": DatasetSettings(reader="refcoco", root="refcoco"),
            "laion": DatasetSettings(reader="laion", root="laion"),
        },
    )
    found = run({"s": source}, store)
    reasons = {(row["dataset"], row["source"].split("#")[0], row["reason"]) for row in rejected(found, store)}
    assert ("(s)", "data.zip/../outside.jpg", "path-traversal") in reasons
    assert any(
        dataset == "(s)" and name == "broken.zip" and reason.startswith("damaged archive")
        for dataset, name, reason in reasons
    )
    assert ("refcoco", "refs(unc).p", "unreadable file") in reasons
    assert ("laion", "00000.tar", "missing image") in reasons
    assert ("laion", "00000.tar", "missing answer") in reasons
    assert ("laion", "00001.tar", "unreadable file") in reasons
    assert {row["dataset"] for row in rows(found, store)} == {"own", "laion"}
    assert not list(tmp_path.rglob("outside.jpg"))
    assert not list(tmp_path.rglob("deep.jpg"))
    assert "must never run" not in capsys.readouterr().out
    assert found.report["records"] == len(rows(found, store)) + len(rejected(found, store))


def test_link_out_of_the_folder_is_not_followed(tmp_path):
    folder, store = tmp_path / "own", Store(str(tmp_path / "store"))
    (tmp_path / "secret.jpg").write_bytes(GOOD)
    write_own(
        folder, [{"image": "a.jpg", "caption": CAPTION}, {"image": "good.jpg", "caption": CAPTION}], {"good.jpg": GOOD}
    )
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    found = run({"own": own_source(folder)}, store)
    assert [(row["source"], row["reason"]) for row in rejected(found, store)] == [("train.jsonl#1", "missing image")]
