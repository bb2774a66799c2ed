"""Extraction of untrusted archives."""

import io
import stat
import tarfile
import zipfile

import pytest

from mgpt.data.archives import Limits, unpack, write_tar


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_zip_path_traversal_is_rejected(tmp_path):
    archive = zipped(
        tmp_path / "a.zip",
        [
            ("in/one.txt", "1"),
            ("../up.txt", "x"),
            ("/etc/abs.txt", "x"),
            ("in\\..\\..\\dos.txt", "x"),
            ("C:/dos.txt", "x"),
        ],
    )
    link = zipfile.ZipInfo("in/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(link, "/etc/passwd")
    refused = unpack(archive, tmp_path / "out")
    assert {(problem.reason) for problem in refused} == {"path-traversal", "link"}
    assert len(refused) == 5
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["one.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_tar_links_devices_and_duplicates_are_rejected(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, kind, target in (
            ("soft", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard", tarfile.LNKTYPE, "../x"),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for name in ("ok.txt", "soft/below.txt", "ok.txt", "../out.txt"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"hi"))
    refused = [(problem.member, problem.reason) for problem in unpack(tmp_path / "a.tar.gz", tmp_path / "out")]
    assert refused == [
        ("soft", "link"),
        ("hard", "link"),
        ("pipe", "device"),
        ("ok.txt", "duplicate-member"),
        ("../out.txt", "path-traversal"),
    ]
    assert (tmp_path / "out/soft/below.txt").read_bytes() == b"hi"
    assert not (tmp_path / "out.txt").exists()


def test_nested_archives_stay_files(tmp_path):
    inner = zipped(tmp_path / "inner.zip", [("x.txt", "x")]).read_bytes()
    unpack(zipped(tmp_path / "outer.zip", [("inner.zip", inner)]), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["inner.zip"]


def test_decompression_bombs(tmp_path):
    archive = zipped(tmp_path / "bomb.zip", [("zeros", bytes(3_000_000))])
    with pytest.raises(ValueError, match="decompression bomb"):
        unpack(archive, tmp_path / "one", Limits(total_bytes=1_000_000))
    with pytest.raises(ValueError, match="more than 1 members"):
        unpack(zipped(tmp_path / "many.zip", [("a", "1"), ("b", "2")]), tmp_path / "two", Limits(members=1))
    assert unpack(archive, tmp_path / "three") == []


def test_damaged_archives(tmp_path):
    whole = zipped(tmp_path / "a.zip", [("a.txt", "a" * 1000)]).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.tar.gz").write_bytes(b"\x1f\x8bnonsense")
    for name in ("cut.zip", "no.tar.gz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an archive"):
            unpack(tmp_path / name, tmp_path / "out")


def test_written_tar_is_reproducible():
    one, other = io.BytesIO(), io.BytesIO()
    write_tar(one, [("a", b"1"), ("b", b"2")])
    write_tar(other, [("a", b"1"), ("b", b"2")])
    assert one.getvalue() == other.getvalue()
    with tarfile.open(fileobj=io.BytesIO(one.getvalue())) as tar:
        assert [(member.name, member.mtime, member.uid, member.uname) for member in tar] == [
            ("a", 0, 0, ""),
            ("b", 0, 0, ""),
        ]
