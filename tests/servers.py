"""Real servers in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(url: str, seconds: float = 60, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    """Returns when the address answers, be it that it asks for a token; fails with the log's end when the process dies or time is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return
        except OSError:
            pass
        else:
            return
        said = log.read_text()[-3000:] if log else ""
        assert process is None or process.poll() is None, f"{url}: its server ended\n{said}"
        assert time.monotonic() < deadline, f"{url} did not answer within {seconds} s\n{said}"
        time.sleep(0.1)


class MlflowServer:
    """`mlflow server` on a database of its own, which tests may stop and start."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
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
        wait_for(f"{self.uri}/health", 300, self.process, self.folder / "server.log")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
