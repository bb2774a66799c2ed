"""Shared by all tests: markers by folder, a quiet environment, and sessions' servers (S3, MLflow, Ray).

Everything heavy is imported inside a fixture, so that `pytest tests/unit` starts fast.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mgpt.execution.session import KEEP_PROCESSES
from tests.fixtures.project import TWO_WORKERS, Project, make
from tests.fixtures.servers import free_port, wait_for

ROOT = Path(__file__).parents[1]
MARKED_FOLDERS = ("unit", "integration", "e2e", "chaos", "browser", "gpu")
# One thread per process: xdist's processes share the cores. Ray reads its variables when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On a busy machine Ray starts slowly, and its default limits would end the node.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
for variable, value in KEEP_PROCESSES.items():
    os.environ.setdefault(variable, value)
# The same examples in every run, so that results are reproducible. HYPOTHESIS_PROFILE=search draws others.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.register_profile("search")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with the folder under tests/ that it lies in."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a moto S3 server, which runs in its own process."""
    port = free_port()
    with open(tmp_path_factory.mktemp("moto") / "log.txt", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/moto-api/")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def s3_variables(s3_endpoint: str) -> dict[str, str]:
    """Environment variables that point clients to the S3 server."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": s3_endpoint, **keys}


@pytest.fixture
def s3_environment(s3_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same variables, set for one test."""
    for name, value in s3_variables.items():
        monkeypatch.setenv(name, value)
    return s3_variables


@pytest.fixture
def bucket(s3_environment: dict[str, str], request: pytest.FixtureRequest) -> str:
    """An empty bucket as `s3://name`."""
    import boto3

    name = f"test-{abs(hash(request.node.nodeid)) % 10**12}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A local Ray of this test session, apart from any other on the machine.

    A process can hold one, so all its tests share it.
    """
    os.environ["PYTHONPATH"] = str(ROOT)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database. Copying it is much faster than creating another."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """The address of an empty MLflow store for one test."""
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def fresh_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with the smallest experiment, before any stage ran. Tests copy it."""
    return make(tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture(scope="session")
def chain(fresh_project: Project, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project after `dvc repro` of the whole chain, with its local Ray still running.

    A test restores what it changes.
    """
    project = fresh_project.copy(tmp_path_factory.mktemp("chain") / "project")
    shutil.copyfile(mlflow_template, project.folder / "mlflow.db")
    try:
        project.first_output = project.elsewhere(**TWO_WORKERS).repro("pretrain@minigpt-v2") + project.repro()
        yield project
    finally:
        project.run("python", "-m", "mgpt", "ray", "stop")
