"""One training that is killed in several ways: the same command resumes it, to the weights of the undisturbed training.

Last, the end of the Ray that the stages shared.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mgpt.execution.session import alive, every_local_ray
from mgpt.storage import sha256_file
from tests.fixtures.project import LONGER, TWO_WORKERS, Project

pytestmark = pytest.mark.timeout(1800)
STEPS = LONGER["steps"]
COMMAND = ("dvc", "repro", "--single-item", "--force", "pretrain@minigpt-v2")


class Training:
    """The chain's pretraining of MiniGPT-v2, with a store and MLflow database where no earlier work is found."""

    def __init__(self, chain: Project, folder: Path, template: Path) -> None:
        (folder / "mlflow.db").write_bytes(template.read_bytes())
        own = {"MGPT_STORAGE__ROOT": str(folder / "store"), "MGPT_TRACKING__URI": f"sqlite:///{folder / 'mlflow.db'}"}
        self.project = chain.elsewhere(**own, **TWO_WORKERS)
        self.fingerprint = self.project.fingerprint("pretrain", "minigpt-v2")
        self.curve = folder / "store" / "runs" / self.fingerprint / "curve.csv"
        self.folder = folder

    def start(self, name: str) -> subprocess.Popen[bytes]:
        return self.project.start(*COMMAND, log=self.folder / name)

    def log(self, name: str) -> str:
        return (self.folder / name).read_text()

    @property
    def steps(self) -> int:
        """The number of steps in the curve."""
        return len(self.curve.read_text().splitlines()) - 1 if self.curve.exists() else 0

    def wait_for_step(self, step: int) -> None:
        """Waits until the curve has the step, which must not be the last."""
        wait(lambda: self.steps >= step, f"step {step} was not seen:\n{self._tail()}")
        assert self.steps < STEPS, "too late: the training is over"

    def _tail(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log")))

    def workers(self) -> list[psutil.Process]:
        """The training workers of the project's local Ray."""
        states = [state for shared in every_local_ray(self.project.folder) if (state := shared.read())]
        children = [child for state in states for child in psutil.Process(state["pid"]).children(recursive=True)]
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]

    def weights(self) -> str:
        return sha256_file(self.project.folder / "results/pretrain/minigpt-v2/weights/trainable.safetensors")

    def logged_steps(self) -> list[int]:
        """Steps of the loss curve in MLflow, as they were logged."""
        from mlflow import MlflowClient

        client = MlflowClient(self.project.variables["MGPT_TRACKING__URI"])
        experiments = [one.experiment_id for one in client.search_experiments()]
        (run,) = client.search_runs(experiments, filter_string=f"tags.`mgpt.fingerprint` = '{self.fingerprint}'")
        return [point.step for point in client.get_metric_history(run.info.run_id, "loss")]


def wait(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def training(chain: Project, mlflow_template: Path, tmp_path: Path) -> Iterator[Training]:
    """The training; the results of the undisturbed one are restored afterwards."""
    results, lock = chain.folder / "results/pretrain/minigpt-v2", chain.folder / "dvc.lock"
    shutil.copytree(results, tmp_path / "kept")
    shutil.copyfile(lock, tmp_path / "kept.lock")
    yield Training(chain, tmp_path, mlflow_template)
    shutil.rmtree(results, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", results)
    shutil.copyfile(tmp_path / "kept.lock", lock)


def test_killed_training_ends_with_equal_weights(chain: Project, training: Training) -> None:
    undisturbed = training.weights()

    # The whole process group, as closing the terminal or the out-of-memory killer would do.
    first = training.start("first.log")
    training.wait_for_step(10)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    # The same command resumes from the last checkpoint. Killing dvc alone leaves its stage running ...
    second = training.start("second.log")
    wait(lambda: training.fingerprint in training.log("second.log"), "the second start does not begin")
    second.kill()
    second.wait()

    # ... and another start waits for that stage. A killed worker is replaced.
    third = training.start("third.log")
    wait(
        lambda: "runs in another process; waiting for it" in training.log("third.log"),
        "the third start does not wait",
    )
    training.wait_for_step(26)
    training.workers()[0].kill()
    assert third.wait(900) == 0, training.log("third.log")[-4000:]

    began = re.search(r"began at step +(\d+)", training.log("third.log"))
    assert began is not None
    assert 0 < int(began.group(1)) < STEPS
    assert "is finished; its outputs are in" in training.log("third.log")
    assert training.weights() == undisturbed
    assert training.logged_steps() == list(range(1, STEPS + 1))


def test_stop_ends_the_local_ray_alone(chain: Project) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        (shared,) = every_local_ray(chain.folder)
        state = shared.read()
        assert state is not None
        stopped = chain.run("python", "-m", "mgpt", "ray", "stop").stdout
        assert f"stopped the local Ray at {state['address']} (pid {state['pid']})" in stopped
        assert not alive(state["pid"], state["started"])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
