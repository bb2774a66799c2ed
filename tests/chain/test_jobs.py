"""Stages as jobs of a Ray cluster, with an S3 store and an MLflow server: submitted once, followed, attached to, brought back."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.identity import declarations
from mgpt.storage import Store
from tests.chain.project import BIN, Project
from tests.conftest import free_port, wait_for

pytestmark = [pytest.mark.chain, pytest.mark.timeout(1800)]
LONGER = {"steps": 40, "checkpoint_every": 4, "global_batch_size": 32, "micro_batch_size": 8}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own with a token; gives the variables that lead to it."""
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # short: Ray's sockets lie below it
    folder.mkdir(mode=0o700)
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    port = free_port()
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", f"--temp-dir={folder}/r"]
    command += ["--object-store-memory=200000000", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]  # others may run Ray here too
    with open(folder / "log.txt", "wb") as log:
        head = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_head(f"http://127.0.0.1:{port}", head, folder / "log.txt")
        yield {**variables, "MGPT_CLUSTER__ADDRESS": f"http://127.0.0.1:{port}"}
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)


def wait_for_head(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
            return
        except urllib.error.HTTPError:  # it answers, and asks for a token
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[str]:
    """A real MLflow server."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    command = [str(BIN / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--port", str(port), "--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "log.txt", "wb") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", 300)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


@pytest.fixture(scope="module")
def remote(
    fresh_project: Project, cluster: dict[str, str], tracking: str, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A fresh project whose store is a bucket, whose runs go to a server, and whose stages go to the cluster."""
    import boto3

    keys = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    session = boto3.Session(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name=keys["AWS_DEFAULT_REGION"])
    session.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="chain")
    project = fresh_project.copy(tmp_path_factory.mktemp("remote") / "project")
    project.variables |= {**cluster, **keys, "MGPT_STORAGE__ROOT": "s3://chain/root", "MGPT_TRACKING__URI": tracking}
    for name, value in LONGER.items():
        project.set(f"pretrain.minigpt-v2.{name}", value)
    return project


def jobs(project: Project) -> list[dict[str, str]]:
    """What `ray job list` knows."""
    code = (
        "import json\nfrom ray.job_submission import JobSubmissionClient\n"
        f"client = JobSubmissionClient({project.variables['MGPT_CLUSTER__ADDRESS']!r})\n"
        "print(json.dumps([{'id': job.submission_id, 'status': job.status.value} for job in client.list_jobs()]))"
    )
    return json.loads(project.run("python", "-c", code).stdout.splitlines()[-1])


def test_a_client_that_died_attaches_to_its_job(remote: Project, tmp_path: Path) -> None:
    remote.repro("download", "curate")
    identity = remote.identity("pretrain", "minigpt-v2")
    name = f"pretrain-minigpt-v2-{identity}"
    assert f"job {name}" in remote.run("python", "-m", "flows", "pretrain", "minigpt-v2", "--dry").stdout
    client = remote.start("dvc", "repro", "pretrain@minigpt-v2", log=tmp_path / "log.txt")
    deadline = time.monotonic() + 600
    while {"id": name, "status": "RUNNING"} not in jobs(remote):
        assert client.poll() is None, (tmp_path / "log.txt").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    assert "RUNNING" in remote.run("python", "-m", "flows", "pretrain", "minigpt-v2", "--dry").stdout
    output = remote.repro("pretrain@minigpt-v2")
    assert f"attached to job {name}" in output
    assert "step 40/40" in output
    assert [job for job in jobs(remote) if job["id"] == name] == [{"id": name, "status": "SUCCEEDED"}]
    assert (remote.folder / "results/pretrain/minigpt-v2/weights/trainable.safetensors").is_file()


def test_the_rest_of_a_system_runs_there_too_and_lies_in_the_bucket(remote: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.repro("promote@minigpt-v2")
    for name, value in remote.variables.items():
        monkeypatch.setenv(name, value)
    store = Store("s3://chain/root")
    done = [one for one in declarations(remote.folder) if (remote.folder / one.folder / "run.json").is_file()]
    assert {one.name for one in done} >= {"download", "curate", "multitask", "evaluate@minigpt-v2", "promote@minigpt-v2"}
    for one in done:
        identity = json.loads((remote.folder / one.folder / "run.json").read_text())["identity"]
        assert store.exists(store.uri("stages", f"{identity}.json")), one.name
    manifest = json.loads((remote.folder / "results/curate/manifest.json").read_text())
    assert all(entry["uri"].startswith("s3://chain/root/") for entry in manifest["entries"])
    assert not (remote.folder / "store").exists()
    remote.run("python", "-m", "mgpt", "verify", "results/curate/manifest.json")
    assert len({job["id"] for job in jobs(remote)}) == len(done)


def test_a_champion_of_the_server_answers(remote: Project) -> None:
    code = (
        "import mlflow, io\nfrom mlflow import MlflowClient\n"
        f"mlflow.set_tracking_uri({remote.variables['MGPT_TRACKING__URI']!r})\n"
        "version = MlflowClient().get_model_version_by_alias('minigpt-v2', 'champion')\n"
        "print(version.version, version.tags['mgpt.data'], version.tags['git.commit'])\n"
    )
    assert remote.run("python", "-c", code).stdout.split()[0] == "1"


def test_the_same_work_is_not_submitted_again(remote: Project) -> None:
    before = jobs(remote)
    output = remote.repro("--single-item", "--force", "pretrain@minigpt-v2")
    assert "is finished; its outputs are in" in output
    assert jobs(remote) == before


def test_a_wrong_address_is_told_with_a_fix(remote: Project) -> None:
    lost = remote.elsewhere(MGPT_CLUSTER__ADDRESS="http://127.0.0.1:9", MGPT_STORAGE__ROOT="s3://chain/other")
    done = lost.run("python", "-m", "flows", "download", check=False)
    assert done.returncode == 2
    assert "cluster.address: http://127.0.0.1:9 cannot be used" in done.stderr
