"""Checks of infra/ that need no Docker and no Kubernetes: schemas, versions, names, and a real run of MLflow's
command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpt.config import load_settings
from mgpt.storage import Store
from mgpt.tracking.client import connect, experiment_id
from tests.fixtures.servers import free_port, wait_for

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
RAY_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001}
FILES = [path for path in sorted(INFRA.rglob("*")) if path.is_file()]


def content(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def clusters() -> list[dict[str, Any]]:
    return [content("kuberay/raycluster.yaml")["spec"], content("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        cluster["headGroupSpec"]["template"]["spec"],
        *(group["template"]["spec"] for group in cluster["workerGroupSpecs"]),
    ]


def test_every_file_names_its_check() -> None:
    assert len(FILES) >= 8
    for path in FILES:
        if path.suffix != ".env":
            assert re.search(r"^# check ", path.read_text(), re.MULTILINE), path


def test_versions_are_pinned_ones() -> None:
    assert {cluster["rayVersion"] for cluster in clusters()} == {PINS["ray"]}
    image = f"mgpt:{PROJECT['version']}"
    assert {
        container["image"] for cluster in clusters() for pod in pods(cluster) for container in pod["containers"]
    } == {image}
    assert content("ray-cluster.yaml")["docker"]["image"] == image
    assert content("compose.yaml")["services"]["mlflow"]["image"] == f"mgpt-mlflow:{PROJECT['version']}"


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow.Dockerfile"])
def test_images_install_pinned_packages(name: str) -> None:
    text = (INFRA / name).read_text()
    assert f"FROM python:{'.'.join(map(str, sys.version_info[:2]))}." in text
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 1
    assert "--constraint" in installs[0]
    extras = re.findall(r'"\.\[(.*)\]"', installs[0])
    assert set(",".join(extras).split(",")) - {""} <= set(PROJECT["optional-dependencies"])


def test_image_holds_job_dependencies() -> None:
    """The installed extras bring Ray, torch, DVC and fused kernels; mgpt itself comes with the job."""
    required = " ".join(PROJECT["optional-dependencies"][extra][0] for extra in ("gpu", "train", "submit"))
    text = (INFRA / "Dockerfile").read_text()
    assert '".[gpu,submit]"' in text
    assert "mgpt[train]" in required
    assert "pip uninstall --yes mgpt" in text
    assert "mgpt[model]" in required
    assert "dvc" in required
    copied = re.findall(r"^COPY (.*) \./(?:mgpt|flows)?$", text, re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_ports_match_ray_and_recipe() -> None:
    for cluster in clusters():
        ports = {port["name"]: port["containerPort"] for port in pods(cluster)[0]["containers"][0]["ports"]}
        assert ports == RAY_PORTS
    assert load_settings(ROOT / "recipes" / "a100.yaml", {}).cluster.address.endswith(f":{RAY_PORTS['dashboard']}")
    assert f"EXPOSE {' '.join(map(str, RAY_PORTS.values()))}" in (INFRA / "Dockerfile").read_text()
    assert load_settings(ROOT / "recipes" / "a100.yaml", {}).tracking.uri == "http://mlflow:5000"
    assert content("compose.yaml")["services"]["mlflow"]["ports"] == ["5000:5000"]


def test_pods_use_defined_secrets() -> None:
    known = {
        one["metadata"]["name"]: set(one["stringData"])
        for one in yaml.safe_load_all((INFRA / "kuberay/secrets.yaml").read_text())
    }
    for cluster in clusters():
        for pod in pods(cluster):
            for container in pod["containers"]:
                assert {one["secretRef"]["name"] for one in container["envFrom"]} <= set(known)
                for one in container["env"]:
                    if "valueFrom" in one:
                        reference = one["valueFrom"]["secretKeyRef"]
                        assert reference["key"] in known[reference["name"]]
                assert {one["name"] for one in container["env"]} == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


def test_workers_satisfy_recipe_resources() -> None:
    training = load_settings(ROOT / "recipes" / "a100.yaml", {}).cluster.training
    for cluster in clusters():
        group = cluster["workerGroupSpecs"][0]
        limits = pods(cluster)[1]["containers"][0]["resources"]["limits"]
        assert float(limits["nvidia.com/gpu"]) == training.gpus_per_worker
        assert float(limits["cpu"]) >= training.cpus_per_worker + training.cpus_per_feed
        assert group["maxReplicas"] >= training.workers


def test_settings_accept_variables_of_files() -> None:
    named = {name for path in FILES for name in re.findall(r"\bMGPT_[A-Z_]+__[A-Z_]+", path.read_text())}
    assert {"MGPT_CLUSTER__ADDRESS", "MGPT_STORAGE__ROOT", "MGPT_TRACKING__URI"} <= named
    values = {
        "MGPT_CLUSTER__ADDRESS": "",
        "MGPT_STORAGE__ROOT": "s3://mgpt/a100",
        "MGPT_TRACKING__URI": "http://mlflow:5000",
    }
    settings = load_settings(ROOT / "recipes" / "a100.yaml", {name: values[name] for name in named})
    assert settings.cluster.address == ""
    assert settings.storage.root == values["MGPT_STORAGE__ROOT"]


def test_ray_validates_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(content("ray-cluster.yaml")))


def test_ray_start_has_the_options() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    lines = [
        *content("ray-cluster.yaml")["head_start_ray_commands"],
        *content("ray-cluster.yaml")["worker_start_ray_commands"],
    ]
    used = {option for line in lines for option in re.findall(r"(--[a-z-]+)", line.partition("ray start")[2])}
    used |= {f"--{name}" for cluster in clusters() for name in cluster["headGroupSpec"]["rayStartParams"]}
    assert used
    assert used <= known


def test_secrets_are_ignored_by_git() -> None:
    assert subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT, check=False).returncode == 0
    assert not re.search(r"^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)=.", (INFRA / "example.env").read_text(), re.MULTILINE)


def test_mlflow_server_starts_with_compose_command(s3_environment: dict[str, str], bucket: str, tmp_path: Path) -> None:
    """Runs the service's command with the test's port and disk and an S3 server; a client then creates a run."""
    service = content("compose.yaml")["services"]["mlflow"]
    port = free_port()
    changed = {"--host": "127.0.0.1", "--port": str(port), "--backend-store-uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    changed |= {"--artifacts-destination": bucket, "--allowed-hosts": f"127.0.0.1:{port}"}
    names = [option.partition("=")[0] for option in service["command"]]
    assert set(changed) <= set(names)
    options = zip(names, service["command"], strict=True)
    command = [f"{name}={changed[name]}" if name in changed else option for name, option in options]
    environment = {**os.environ, **s3_environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    assert set(service["environment"]) <= set(environment)
    with open(tmp_path / "log.txt", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", seconds=240)
        address = f"http://127.0.0.1:{port}"
        client = connect(address)
        run = client.create_run(experiment_id(client, address, "infra", None)).info.run_id
        client.log_text(run, "a summary", "summary.txt")
        kept = [uri for uri in Store(bucket).list(bucket) if uri.endswith("summary.txt")]
        assert [Store(bucket).read(uri) for uri in kept] == [b"a summary"]
    finally:
        server.terminate()
        server.wait(30)
