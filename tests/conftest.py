"""What tests of every package share: a quiet environment, an S3-compatible server, and an MLflow store made once."""

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
# Two cores are shared by all that runs: one thread a process. Ray reads its variables when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A machine that also does other work starts Ray slowly; its own limits then end the node.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
for variable, value in KEEP_PROCESSES.items():
    os.environ.setdefault(variable, value)
# The same examples in every run: what passed here passes elsewhere. HYPOTHESIS_PROFILE=search looks for others.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.register_profile("search")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real moto S3 server in a process of its own."""
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
    """The variables that lead to the S3 server."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return {"AWS_ENDPOINT_URL": s3_endpoint, **keys}


@pytest.fixture
def s3_environment(s3_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that lead to the S3 server, set for the test."""
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
    """A Ray of this test session's own, whatever else runs on the machine; a process can have one only, so every test shares it."""
    os.environ["PYTHONPATH"] = str(ROOT)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database; copying it is much faster than making another."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """The address of an empty MLflow store of the test's own."""
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def fresh_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with the smallest experiment, before anything ran. Tests copy it."""
    return make(tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture(scope="session")
def chain(fresh_project: Project, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project after `dvc repro` of the whole chain. Its local Ray serves every test; what a test changes it puts back."""
    project = fresh_project.copy(tmp_path_factory.mktemp("chain") / "project")
    shutil.copyfile(mlflow_template, project.folder / "mlflow.db")
    try:
        project.first_output = project.elsewhere(**TWO_WORKERS).repro("pretrain@minigpt-v2") + project.repro()
        yield project
    finally:
        project.run("python", "-m", "mgpt", "cluster", "stop")
