"""A registry with real weights, and a real MLflow server that tests may stop and start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port, wait_for
from tests.fixtures_registry import Registry, make_all_weights


@pytest.fixture(scope="session")
def all_weights(tmp_path_factory):
    return make_all_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def registry(tmp_path, mlflow_uri, all_weights):
    return Registry(tmp_path, mlflow_uri, all_weights)


class Server:
    """`mlflow server` on a database of its own."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        shutil.copyfile(template, folder / "server.db")

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        database = f"sqlite:///{self.folder / 'server.db'}"
        places = ["--backend-store-uri", database, "--artifacts-destination", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", *address, *places]
        with open(self.folder / "server.log", "ab") as log:
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_for(f"{self.uri}/health", 120)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory, mlflow_template):
    running = Server(tmp_path_factory.mktemp("server"), mlflow_template)
    running.start()
    yield running
    running.stop()
