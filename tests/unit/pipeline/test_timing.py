"""CPU seconds of a local Ray's processes."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mgpt.pipeline import timing

BUSY = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
# Like Ray, a process that does not wait for its children: their time is added to nobody's.
OWNER = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.stdin.readline()
subprocess.Popen([sys.executable, "-c", {BUSY!r}])
time.sleep(60)
"""


@pytest.fixture
def owner(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE) as process:
        shared = SimpleNamespace(read=lambda: {"pid": process.pid})
        monkeypatch.setattr(timing, "every_local_ray", lambda project: [shared])
        yield process
        process.kill()


def test_ended_processes_count(owner, tmp_path):
    meter = timing.RayMeter(tmp_path, interval=0.02)
    owner.stdin.write(b"\n")
    owner.stdin.flush()
    deadline = time.monotonic() + 30
    while meter.seconds() < 0.5:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child_ended = timing.RayMeter(tmp_path, interval=60)
    assert meter.seconds() >= 0.5
    assert child_ended.seconds() < 0.3  # what was used before does not count


def test_no_local_ray(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "every_local_ray", lambda project: [SimpleNamespace(read=lambda: None)])
    assert timing.RayMeter(tmp_path).seconds() == 0
