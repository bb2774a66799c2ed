"""Training on a real Ray: the same curve on any number of workers, the same bits after any kill."""

import contextlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mgpt.execution.checkpoints import SNAPSHOT
from mgpt.execution.train import read_curve, train
from tests.fixtures.training_runs import EVERY, SHORT, STEPS, request


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
    from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor

    asked, result = reference
    assert losses(result)[-1] < losses(result)[0] - 0.1
    assert [row["step"] for row in result.curve] == asked.tracker.steps == list(range(5, STEPS + 1, 5))
    assert read_curve((asked.out / "curve.csv").read_bytes()) == result.curve
    assert (result.steps, result.resumed_from) == (STEPS, 0)
    assert len(result.stalls) == STEPS // EVERY
    MiniGPTForConditionalGeneration.from_trainable(result.weights, backbones=training[0])
    assert MiniGPTProcessor.from_pretrained(result.weights).num_image_tokens == 4


def test_finished_run_returns_at_once(reference, training, folder):
    asked, result = reference
    Path(asked.out / "curve.csv").unlink()
    again = train(request(training, folder, "reference"))
    assert (again.sha256, again.curve, again.resumed_from) == (result.sha256, result.curve, STEPS)


def test_curve_depends_neither_on_the_number_of_workers_nor_on_cached_features(short, cached):
    assert losses(cached) == pytest.approx(losses(short), rel=1e-5)


def test_split_frozen_weights_train_as_whole_ones(short, training, folder):
    split = train(request(training, folder, "split", parallelism="fsdp", **SHORT))
    assert losses(split) == pytest.approx(losses(short), rel=1e-5)


def until(condition, what):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, f"{what} was not seen"
        time.sleep(0.05)


def wait_for_step(run_uri, after):
    """Returns when the curve has come to a step; it must not be the training's last."""
    curve = Path(run_uri) / "curve.csv"
    until(lambda: curve.exists() and _last(curve) >= after, f"step {after}")
    assert _last(curve) < STEPS, "too late: the training is over"


def _last(curve):
    return max((row["step"] for row in read_curve(curve.read_bytes())), default=0)


def training_workers():
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since
            found += [child] if "RayTrainWorker" in " ".join(child.cmdline()) else []
    return found


def until_workers_ended():
    """Workers of an earlier training end a moment after it."""
    until(lambda: not training_workers(), "the workers' end")


def committed(run_uri):
    """The steps of the checkpoints that count."""
    named = json.loads((Path(run_uri) / SNAPSHOT).read_text())["checkpoint_results"]
    return [
        json.loads((Path(run_uri) / one["checkpoint_dir_name"] / "state.json").read_text())["head"]["position"]
        for one in named
    ]


DRIVER = """
import sys
from pathlib import Path
import ray
from mgpt.execution.train import train
from tests.fixtures.training_runs import request
from mgpt.storage import Manifest
folder, backbones, manifest = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False)
train(request((dict(vision=backbones + "/vision", language=backbones + "/language"), Manifest.load(manifest)), Path(folder), "disturbed"))
"""


def kill_driver(training, folder):
    """Begins the disturbed training in a process with a Ray of its own, tells a worker to end, and kills process and Ray when the training
    has gone on. Returns the step of the checkpoint that the worker kept."""
    backbones, manifest = training
    manifest.save(folder / "manifest.json")
    arguments = [str(folder), str(Path(backbones["vision"]).parent), str(folder / "manifest.json")]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])
    try:
        told = tell_worker(str(folder / "runs" / "disturbed"), after=20)
        wait_for_step(str(folder / "runs" / "disturbed"), after=told + 2 * EVERY)
    finally:
        for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()
    return told


def tell_worker(run_uri, after):
    """SIGTERM between two regular checkpoints; returns the step of the one that is kept before the worker ends."""
    wait_for_step(run_uri, after)
    worker = training_workers()[-1]
    worker.terminate()
    worker.wait(120)
    kept = max(committed(run_uri))
    return kept if kept % EVERY else tell_worker(run_uri, kept + 10)  # that one was due at this very step


def damage_checkpoint(run_uri):
    """Alters the newest checkpoint when workers begin to start: the driver found it whole, they will not."""
    until(training_workers, "a worker")
    newest = json.loads((Path(run_uri) / SNAPSHOT).read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]
    path = Path(run_uri) / newest / "parameters.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"none")


def test_after_every_disturbance_the_same_bits(reference, training, folder, capsys):
    """A worker is told to end; driver and Ray are killed; what goes on finds a checkpoint damaged."""
    asked = request(training, folder, "disturbed")
    until_workers_ended()
    told = kill_driver(training, folder)
    until_workers_ended()
    with ThreadPoolExecutor(1) as other:
        damaged = other.submit(damage_checkpoint, asked.run_uri)
        result = train(asked)
        damaged.result()
    assert EVERY < told < result.resumed_from < STEPS
    said = capsys.readouterr().out
    assert "altered since it was written (sha256 of parameters.safetensors" in said
    assert "The run goes on from checkpoint_" in said
    assert (result.sha256, losses(result)) == (reference[1].sha256, losses(reference[1]))
    assert [row["step"] for row in result.curve] == reference[0].tracker.steps
    assert asked.tracker.steps == reference[0].tracker.steps


def test_dataset_that_is_not_there_is_refused_before_a_worker_starts(ray_here, training, folder):
    with pytest.raises(ValueError, match=r"mixture: no train data for nothing; the manifest holds chat, scenes"):
        train(request(training, folder, "refused", mixture={"nothing": 1}))
    assert not (folder / "runs" / "refused").exists()
