"""Training on a real Ray: the same curve on any number of workers, the same bits after any kill."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mgpt.cluster.checkpoints import SNAPSHOT
from mgpt.cluster.trainer import TrainRequest, read_curve, train
from mgpt.settings.training import TrainingSettings, WorkerSettings
from mgpt.storage import Manifest

STEPS = 90
FRESH = {"merge": 4, "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}}


def settings(**changes):
    base = {
        "format": "minigpt-v2",
        "mixture": {"scenes": 3, "chat": 1},
        "steps": STEPS,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "log_every": 5,
        "checkpoint_every": 15,
    }
    return TrainingSettings(**{**base, **changes})


class Recorder:
    """Stands where a tracker does, and keeps what it is told."""

    def __init__(self):
        self.steps = []

    def log_metrics(self, metrics, step=0):
        assert metrics["loss"] > 0
        self.steps.append(step)


def request(training, folder, name, workers=2, **changes):
    bases, manifest = training
    out = folder / f"out-{name}"
    out.mkdir(exist_ok=True)
    run_uri, held = str(folder / "runs" / name), {"fresh": changes.pop("fresh", FRESH), "loading": changes.pop("loading", {})}
    group = WorkerSettings(workers=workers, parallelism=changes.pop("parallelism", "replicated"), ledger=changes.pop("ledger", False))
    return TrainRequest(settings(**changes), group, manifest, bases, run_uri, out, **held, tracker=Recorder())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reference(ray_here, training, folder):
    """The uninterrupted run with two workers, and its request."""
    asked = request(training, folder, "reference")
    return asked, train(asked)


def losses(result):
    return [row["loss"] for row in result.curve]


def test_run_learns_logs_each_step_once_and_writes_weights_that_load(reference, training):
    from mgpt.model import MiniGPTForConditionalGeneration, MiniGPTProcessor

    asked, result = reference
    assert losses(result)[-1] < losses(result)[0] - 0.1
    assert [row["step"] for row in result.curve] == asked.tracker.steps == list(range(5, STEPS + 1, 5))
    assert read_curve((asked.out / "curve.csv").read_bytes()) == result.curve
    assert (result.steps, result.resumed_from) == (STEPS, 0)
    assert len(result.stalls) == STEPS // 15
    MiniGPTForConditionalGeneration.from_trainable(result.weights, bases=training[0])
    assert MiniGPTProcessor.from_pretrained(result.weights).num_image_tokens == 4


def test_finished_run_returns_at_once(reference, training, folder):
    asked, result = reference
    Path(asked.out / "curve.csv").unlink()
    again = train(request(training, folder, "reference"))
    assert (again.sha256, again.curve, again.resumed_from) == (result.sha256, result.curve, STEPS)


def test_curve_does_not_depend_on_the_number_of_workers(ray_here, training, folder):
    fresh = {**FRESH, "lora": {**FRESH["lora"], "lora_dropout": 0.0}}  # a worker's dropout is its own
    curves = [losses(train(request(training, folder, f"without-dropout-{workers}", workers, fresh=fresh, steps=30))) for workers in (1, 2)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_killed_worker_changes_nothing(reference, training, folder):
    asked = request(training, folder, "killed-worker")
    killed = []
    watch = threading.Thread(target=lambda: killed.append(kill_worker(asked.run_uri, after=25)))
    watch.start()
    result = train(asked)
    watch.join()
    assert killed[0] >= 25
    assert (result.sha256, losses(result)) == (reference[1].sha256, losses(reference[1]))
    assert asked.tracker.steps == reference[0].tracker.steps


def kill_worker(run_uri, after):
    """Kills one training worker of this process's Ray when the curve has come to a step; returns the step."""
    step = wait_for_step(run_uri, after)
    training_workers()[-1].kill()
    return step


def training_workers():
    return [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


def committed(run_uri):
    """The steps of the checkpoints that count."""
    named = json.loads((Path(run_uri) / SNAPSHOT).read_text())["checkpoint_results"]
    return [json.loads((Path(run_uri) / one["checkpoint_dir_name"] / "state.json").read_text())["head"]["position"] for one in named]


def test_a_worker_that_is_told_to_end_loses_no_step(reference, training, folder):
    """SIGTERM between two regular checkpoints: one more is kept, and training goes on from there."""
    asked = request(training, folder, "told")
    seen = []

    def tell():
        wait_for_step(asked.run_uri, after=35)
        training_workers()[-1].terminate()
        while not seen:
            with contextlib.suppress(FileNotFoundError, ValueError):
                seen.extend(step for step in committed(asked.run_uri) if step % 15)
            time.sleep(0.05)

    watch = threading.Thread(target=tell)
    watch.start()
    result = train(asked)
    watch.join()
    assert 35 <= seen[0] < STEPS
    assert (result.sha256, losses(result)) == (reference[1].sha256, losses(reference[1]))


def test_a_checkpoint_damaged_in_mid_run_gives_way_to_the_one_before(reference, training, folder, capsys):
    asked = request(training, folder, "damaged")

    def damage():
        wait_for_step(asked.run_uri, after=50)
        worker = training_workers()[-1]
        worker.suspend()  # so that no other checkpoint comes
        time.sleep(1)
        newest = json.loads((Path(asked.run_uri) / SNAPSHOT).read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]
        path = Path(asked.run_uri) / newest / "trainables.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"none")
        worker.kill()

    watch = threading.Thread(target=damage)
    watch.start()
    result = train(asked)
    watch.join()
    said = capsys.readouterr().out
    assert "altered since it was written (trainables.safetensors" in said
    assert "The run goes on from checkpoint_" in said
    assert (result.sha256, losses(result)) == (reference[1].sha256, losses(reference[1]))


def test_split_frozen_weights_train_as_whole_ones(reference, training, folder):
    result = train(request(training, folder, "split", parallelism="fsdp"))
    assert losses(result) == pytest.approx(losses(reference[1]), rel=1e-5)


def wait_for_step(run_uri, after):
    curve = Path(run_uri) / "curve.csv"
    while not (curve.exists() and (rows := read_curve(curve.read_bytes())) and rows[-1]["step"] >= after):
        time.sleep(0.05)  # the test's own timeout ends it
    return rows[-1]["step"]


DRIVER = """
import sys
from pathlib import Path
import ray
from tests.cluster.test_trainer import request, train
from mgpt.storage import Manifest
folder, bases, manifest = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False)
train(request((dict(vision=bases + "/vision", language=bases + "/language"), Manifest.load(manifest)), Path(folder), "killed-driver"))
"""


def test_killed_driver_and_ray_go_on_from_the_checkpoint(reference, training, folder):
    bases, manifest = training
    manifest.save(folder / "manifest.json")
    arguments = [str(folder), str(Path(bases["vision"]).parent), str(folder / "manifest.json")]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])
    try:
        wait_for_step(str(folder / "runs" / "killed-driver"), after=40)
    finally:
        for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()

    result = train(request((bases, Manifest.load(folder / "manifest.json")), folder, "killed-driver"))
    assert 15 <= result.resumed_from < STEPS
    assert (result.sha256, losses(result)) == (reference[1].sha256, losses(reference[1]))
    assert [row["step"] for row in result.curve] == list(range(5, STEPS + 1, 5))


def test_dataset_that_is_not_there_is_refused_before_a_worker_starts(ray_here, training, folder):
    with pytest.raises(ValueError, match=r"mixture: no train data for nothing; the manifest holds chat, scenes"):
        train(request(training, folder, "refused", mixture={"nothing": 1}))
    assert not (folder / "runs" / "refused").exists()
