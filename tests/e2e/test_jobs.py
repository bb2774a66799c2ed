"""Stages as jobs of a Ray cluster, with an S3 store and an MLflow server: submitted once, followed, restored."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.config import load_settings
from mgpt.pipeline.stages import pipeline_stages
from mgpt.storage import Manifest, Store
from tests.fixtures.project import BIN, STEPS, Project
from tests.fixtures.servers import MlflowServer, free_port, wait_for

pytestmark = pytest.mark.timeout(1800)
# The model whose stages are of every kind: what MiniGPT-v2's multitask does, instruct does too.
MODEL = "minigpt4"
PRETRAIN = f"pretrain@{MODEL}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head of its own with a token; gives the variables that lead to it."""
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # short: Ray's sockets lie below it
    folder.mkdir(mode=0o700)
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "token").chmod(0o600)
    port = free_port()
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", f"--temp-dir={folder}/r"]
    command += [
        "--object-store-memory=200000000",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}",
        "--disable-usage-stats",
    ]
    command += [
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]  # others may run Ray here too
    with open(folder / "log.txt", "wb") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/api/version", 300, head, folder / "log.txt")
        yield {**variables, "MGPT_CLUSTER__ADDRESS": f"http://127.0.0.1:{port}"}
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # asked to end, it takes half a minute
        head.wait()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[str]:
    """A real MLflow server."""
    server = MlflowServer(tmp_path_factory.mktemp("server"), mlflow_template)
    server.start()
    yield server.uri
    server.stop()


@pytest.fixture(scope="module")
def remote(
    fresh_project: Project,
    cluster: dict[str, str],
    tracking: str,
    s3_variables: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Project:
    """A fresh project whose store is a bucket, whose runs go to a server, and whose stages go to the cluster."""
    import boto3

    keys = [s3_variables[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    session = boto3.Session(*keys, region_name=s3_variables["AWS_DEFAULT_REGION"])
    session.client("s3", endpoint_url=s3_variables["AWS_ENDPOINT_URL"]).create_bucket(Bucket="chain")
    project = fresh_project.copy(tmp_path_factory.mktemp("remote") / "project")
    project.variables |= {
        **cluster,
        **s3_variables,
        "MGPT_STORAGE__ROOT": "s3://chain/root",
        "MGPT_TRACKING__URI": tracking,
    }
    return project


def jobs(project: Project) -> dict[str, str]:
    """The cluster's jobs by submission id, with their state, as its job server tells them."""
    token = Path(project.variables["RAY_AUTH_TOKEN_PATH"]).read_text()
    address = f"{project.variables['MGPT_CLUSTER__ADDRESS']}/api/jobs/"
    with urllib.request.urlopen(
        urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"}), timeout=60
    ) as answered:
        return {job["submission_id"]: job["status"] for job in json.load(answered) if job["submission_id"]}


def test_killed_client_attaches_to_its_job(remote: Project, tmp_path: Path) -> None:
    remote.repro("download", "curate")
    _, fingerprint, state = remote.run("python", "-m", "flows", "pretrain", MODEL, "--dry").stdout.split(maxsplit=2)
    name = f"pretrain-{MODEL}-{fingerprint}"
    assert state.startswith(f"job {name} at {remote.variables['MGPT_CLUSTER__ADDRESS']}: not submitted")
    client = remote.start("dvc", "repro", PRETRAIN, log=tmp_path / "log.txt")
    deadline = time.monotonic() + 600
    while jobs(remote).get(name) != "RUNNING":
        assert client.poll() is None, (tmp_path / "log.txt").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    output = remote.repro(PRETRAIN)
    assert f"attached to job {name} (RUNNING)" in output
    assert f"step {STEPS['pretrain']}/{STEPS['pretrain']}" in output
    assert jobs(remote)[name] == "SUCCEEDED"
    listed = remote.run("ray", "job", "list", "--address", remote.variables["MGPT_CLUSTER__ADDRESS"]).stdout
    assert listed.count(f"submission_id='{name}'") == 1
    assert listed.count("submission_id='pretrain-") == 1
    assert (remote.folder / f"results/pretrain/{MODEL}/weights/trainable.safetensors").is_file()


def test_whole_pipeline_of_a_model_runs_as_jobs(remote: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.repro(f"promote@{MODEL}")
    monkeypatch.chdir(remote.folder)
    for name, value in remote.variables.items():
        monkeypatch.setenv(name, value)
    store = Store("s3://chain/root")
    stages = pipeline_stages(load_settings(remote.folder / "params.yaml", {}))
    done = [one for one in stages if (remote.folder / one.folder / "run.json").is_file()]
    of_model = {f"{stage}@{MODEL}" for stage in ("pretrain", "instruct", "evaluate", "promote")}
    assert {one.name for one in done} == {"download", "curate", "describe"} | of_model
    for one in done:
        fingerprint = json.loads((remote.folder / one.folder / "run.json").read_text())["fingerprint"]
        assert store.exists(store.uri("stages", f"{fingerprint}.json")), one.name
    manifest = json.loads((remote.folder / "results/curate/manifest.json").read_text())
    assert all(entry["uri"].startswith("s3://chain/root/") for entry in manifest["entries"])
    assert not (remote.folder / "store").exists()
    remote.run("python", "-m", "mgpt", "verify", "results/curate/manifest.json")
    assert len(jobs(remote)) == len(done)


def test_server_has_the_champion(remote: Project) -> None:
    from mgpt.registry.versions import champion
    from mgpt.tracking.client import connect

    found = champion(connect(remote.variables["MGPT_TRACKING__URI"]), MODEL)
    assert found is not None
    assert found.number == 1
    assert (found.weights.weights, found.weights.root) == (f"content/{found.weights.digest}", "s3://chain/root")
    assert found.tags["mgpt.data"] == Manifest.load(remote.folder / f"results/promote/{MODEL}/data.json").digest


def test_finished_work_is_not_submitted(remote: Project) -> None:
    before = jobs(remote)
    output = remote.repro("--single-item", "--force", PRETRAIN)
    assert "is finished; its outputs are in" in output
    assert jobs(remote) == before


def test_wrong_address_is_reported_with_a_fix(remote: Project) -> None:
    lost = remote.elsewhere(MGPT_CLUSTER__ADDRESS="http://127.0.0.1:9", MGPT_STORAGE__ROOT="s3://chain/other")
    done = lost.run("python", "-m", "flows", "download", check=False)
    assert done.returncode == 2
    assert "cluster.address: http://127.0.0.1:9 cannot be used" in done.stderr
