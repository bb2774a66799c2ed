"""Kills in the middle of training: the same command goes on, to the same weights, with each step in the curve once."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mgpt.cluster.connect import every_local_ray
from mgpt.storage import sha256_file
from tests.chain.project import Project

pytestmark = [pytest.mark.chain, pytest.mark.timeout(1800)]
STAGE = "pretrain@minigpt-v2"
LONGER = {"steps": 40, "checkpoint_every": 4, "global_batch_size": 32, "micro_batch_size": 8}
COMMAND = ("dvc", "repro", "--single-item", "--force", STAGE)


@pytest.fixture(scope="module")
def longer(chain: Project) -> Iterator[Project]:
    """The chain with a pretraining that is long enough to be killed in its middle."""
    text = (chain.folder / "params.yaml").read_text()
    for name, value in LONGER.items():
        chain.set(f"pretrain.minigpt-v2.{name}", value)
    yield chain
    (chain.folder / "params.yaml").write_text(text)


def somewhere(project: Project, folder: Path, template: Path) -> Project:
    """The project with a store and an MLflow database of its own, so that no earlier work is found."""
    folder.mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    return project.elsewhere(MGPT_STORAGE__ROOT=str(folder / "store"), MGPT_TRACKING__URI=f"sqlite:///{folder / 'mlflow.db'}")


def weights(project: Project) -> str:
    return sha256_file(project.folder / "results/pretrain/minigpt-v2/weights/trainable.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(longer: Project, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights' sha256 of a training that nobody disturbed."""
    project = somewhere(longer, tmp_path_factory.mktemp("calm") / "x", mlflow_template)
    project.run(*COMMAND)
    return weights(project)


def curve_steps(project: Project, identity: str) -> int:
    """How many steps the running training has shown."""
    curve = Path(project.variables["MGPT_STORAGE__ROOT"]) / "runs" / identity / "curve.csv"
    return len(curve.read_text().splitlines()) - 1 if curve.exists() else 0


def wait(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def logged_steps(project: Project, identity: str) -> list[int]:
    """Steps of the loss curve in MLflow, as they were logged."""
    from mlflow import MlflowClient

    client = MlflowClient(project.variables["MGPT_TRACKING__URI"])
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string=f"tags.`mgpt.identity` = '{identity}'")
    assert len(runs) == 1
    return [point.step for point in client.get_metric_history(runs[0].info.run_id, "loss")]


def test_killed_with_its_whole_group_it_goes_on_to_the_same_weights(
    longer: Project, uninterrupted: str, mlflow_template: Path, tmp_path: Path
) -> None:
    project = somewhere(longer, tmp_path / "x", mlflow_template)
    identity = project.identity("pretrain", "minigpt-v2")
    process = project.start(*COMMAND, log=tmp_path / "log.txt")
    wait(lambda: curve_steps(project, identity) >= 10, "no training step was seen")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert curve_steps(project, identity) < LONGER["steps"]
    output = project.run(*COMMAND).stdout
    began = re.search(r"began at step +(\d+)", output)
    assert began is not None
    assert 0 < int(began.group(1)) < LONGER["steps"]
    assert weights(project) == uninterrupted
    steps = logged_steps(project, identity)
    assert steps == sorted(set(steps))


def test_a_killed_worker_is_replaced_without_anybodys_help(
    longer: Project, uninterrupted: str, mlflow_template: Path, tmp_path: Path
) -> None:
    project = somewhere(longer, tmp_path / "x", mlflow_template)
    identity = project.identity("pretrain", "minigpt-v2")
    process = project.start(*COMMAND, log=tmp_path / "log.txt")
    wait(lambda: curve_steps(project, identity) >= 10, "no training step was seen")
    workers(project)[0].kill()
    assert process.wait(900) == 0, (tmp_path / "log.txt").read_text()[-4000:]
    assert weights(project) == uninterrupted
    assert logged_steps(project, identity) == list(range(1, LONGER["steps"] + 1))


def workers(project: Project) -> list[psutil.Process]:
    """The training workers of the project's local Ray."""
    states = [state for shared in every_local_ray(project.folder) if (state := shared.read())]
    children = [child for state in states for child in psutil.Process(state["pid"]).children(recursive=True)]
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def test_killing_dvc_alone_leaves_one_that_works_and_one_that_waits(
    longer: Project, uninterrupted: str, mlflow_template: Path, tmp_path: Path
) -> None:
    project = somewhere(longer, tmp_path / "x", mlflow_template)
    identity = project.identity("pretrain", "minigpt-v2")
    process = project.start(*COMMAND, log=tmp_path / "log.txt")
    wait(lambda: curve_steps(project, identity) >= 4, "no training step was seen")
    process.kill()
    process.wait()
    output = project.run(*COMMAND).stdout
    assert "under way in another process; waiting for it" in output
    assert "is finished; its outputs are in" in output
    assert weights(project) == uninterrupted
    assert logged_steps(project, identity) == list(range(1, LONGER["steps"] + 1))
