"""Fetches of one file from faulty servers."""

import hashlib
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import tenacity

from mgpt.config.sources import DownloadSettings
from mgpt.download.fetch import MAX_RETRY_AFTER, FetchError, Mirror, fetch
from mgpt.download.mirrors import locate
from tests.fixtures.faulty import Faults

FAST = DownloadSettings(attempts=12, timeout_seconds=10, backoff_seconds=0.001)
TWICE = FAST.model_copy(update={"attempts": 2})


def mirrors(*urls):
    return [Mirror(location, location.list()[0]) for location in (locate(url, ("*",)) for url in urls)]


def test_cut_body_is_resumed(web, tmp_path):
    body = random.Random(1).randbytes(3_000_000)
    web.files["/a.bin"] = body
    web.faults = Faults(0.7, seed=3)
    found = fetch(mirrors(f"{web.url}/a.bin"), tmp_path / "a.bin", FAST)
    assert (tmp_path / "a.bin").read_bytes() == body
    assert found.sha256 == hashlib.sha256(body).hexdigest()
    assert web.faults.injected > 0
    ranges = [wanted for _, wanted in web.requests]
    assert any(wanted for wanted in ranges), "nothing was resumed"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_changed_file_is_fetched_from_scratch(web, tmp_path):
    old, new = random.Random(1).randbytes(1_000_000), random.Random(2).randbytes(1_000_000)
    web.files["/a.bin"] = old
    web.faults = Faults(1.0)
    with pytest.raises(FetchError):
        fetch(mirrors(f"{web.url}/a.bin"), tmp_path / "a.bin", FAST.model_copy(update={"attempts": 3}))
    web.files["/a.bin"] = new
    web.faults = Faults(0.0)
    fetch(mirrors(f"{web.url}/a.bin"), tmp_path / "a.bin", FAST)
    assert (tmp_path / "a.bin").read_bytes() == new


def test_mirrors_are_tried_in_order(web, tmp_path):
    web.files["/second"] = b"good"
    found = fetch(mirrors(f"{web.url}/first", f"{web.url}/second"), tmp_path / "x", FAST)
    assert found.origin.endswith("/second")
    with pytest.raises(FetchError, match=r"/none: HTTP 404; .*/neither: HTTP 404"):
        fetch(mirrors(f"{web.url}/none", f"{web.url}/neither"), tmp_path / "y", FAST)
    assert not (tmp_path / "y").exists()


def test_wrong_digest_is_rejected(web, tmp_path):
    web.files["/bad"], web.files["/good"] = b"evil", b"fine"
    declared = hashlib.sha256(b"fine").hexdigest()
    found = fetch(mirrors(f"{web.url}/bad", f"{web.url}/good"), tmp_path / "x", TWICE, declared)
    assert found.origin.endswith("/good")
    with pytest.raises(FetchError, match="not the declared"):
        fetch(mirrors(f"{web.url}/bad"), tmp_path / "y", TWICE, declared)
    assert not (tmp_path / "y").exists()


@pytest.fixture
def pauses(monkeypatch):
    """The seconds of each pause between attempts, none of which is waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", seconds.append)
    return seconds


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("form", [str, in_seconds], ids=["seconds", "date"])
def test_retry_after_lengthens_the_pause(form, web, tmp_path, pauses):
    web.files["/a.bin"], web.busy["/a.bin"] = b"good", form(20)
    fetch(mirrors(f"{web.url}/a.bin"), tmp_path / "a.bin", TWICE)
    assert len(pauses) == 1
    assert 18 < pauses[0] <= 20


@pytest.mark.parametrize("value", ["soon", in_seconds(-20), "0"], ids=["invalid", "past", "zero"])
def test_other_retry_after_keeps_the_backoff(value, web, tmp_path, pauses):
    web.files["/a.bin"], web.busy["/a.bin"] = b"good", value
    fetch(mirrors(f"{web.url}/a.bin"), tmp_path / "a.bin", TWICE)
    assert len(pauses) == 1
    assert 0 < pauses[0] < 1


def test_long_retry_after_leads_to_next_mirror(web, tmp_path, pauses):
    web.files |= {"/first": b"good", "/second": b"good"}
    web.busy["/first"] = str(MAX_RETRY_AFTER + 1).removesuffix(".0")
    found = fetch(mirrors(f"{web.url}/first", f"{web.url}/second"), tmp_path / "x", FAST)
    assert found.origin.endswith("/second")
    assert pauses == []
