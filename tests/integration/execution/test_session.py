"""The shared local Ray: one owner, many processes, stopped when idle or on request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.config.infrastructure import ClusterSettings
from mgpt.execution.session import alive, local_ray, process_start, stop

ROOT = Path(__file__).parents[3]
SETTINGS = ClusterSettings(cpus=2, object_store_mb=80, idle_minutes=0.2)
CLIENT = """
import os, sys
from pathlib import Path
from mgpt.execution.session import connect
from mgpt.config.infrastructure import ClusterSettings
with connect(ClusterSettings(cpus=2, object_store_mb=80, idle_minutes=0.2), Path.cwd()):
    import ray

    @ray.remote
    def describe():
        import mgpt.storage
        return mgpt.storage.__file__, os.environ.get("AWS_PROFILE"), os.environ["RAY_ADDRESS"]

    print("RESULT", *ray.get(describe.remote()))
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mgpt").symlink_to(ROOT / "mgpt")
    yield tmp_path
    stop(tmp_path)


def client(project: Path, **variables: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(project), **variables}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()[1:]


def test_processes_share_one_ray_that_stops_when_idle(project: Path) -> None:
    file, profile, address = client(project)
    assert file == str(project / "mgpt" / "storage" / "__init__.py")
    assert profile == "None"
    shared = local_ray(SETTINGS, project)
    first = shared.read()
    assert first is not None
    assert first["address"] == address
    assert client(project, AWS_PROFILE="changed")[1:] == ["changed", address]
    assert shared.token.stat().st_mode & 0o777 == 0o600
    deadline = time.monotonic() + 120
    while alive(first["pid"], first["started"]):
        assert time.monotonic() < deadline, "the owner outlived its idle time"
        time.sleep(0.5)
    assert shared.read() is None
    assert stop(project) == []


def test_ray_of_a_killed_owner_is_replaced(project: Path) -> None:
    _, _, address = client(project)
    shared = local_ray(SETTINGS, project)
    first = shared.read()
    assert first is not None
    os.kill(first["pid"], signal.SIGKILL)
    leftover = json.loads(shared.process.read_text())
    assert client(project)[2] != address
    assert not alive(leftover["pid"], leftover["started"])


def test_reused_pid_is_not_the_owner(project: Path) -> None:
    shared = local_ray(SETTINGS, project)
    shared.state.write_text(f'{{"pid": {os.getpid()}, "started": "1.00", "address": "x", "environment": {{}}}}')
    assert shared.read() is None
    assert stop(project) == []
    assert process_start(os.getpid()) != "1.00"


def test_each_project_has_its_own_ray(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    assert local_ray(SETTINGS, project).folder != local_ray(SETTINGS, other).folder
    assert local_ray(SETTINGS, project).folder != local_ray(ClusterSettings(cpus=3, object_store_mb=80), project).folder
