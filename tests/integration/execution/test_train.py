"""Training on a real Ray: the same curve on any number of workers, the same bits after any kill."""

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mgpt.execution.checkpoints import CheckpointStore
from mgpt.execution.curve import read_curve
from mgpt.execution.train import train
from mgpt.storage import Store
from mgpt.storage.artifacts import ArtifactStore
from tests.fixtures.training_runs import EVERY, SHORT, STEPS, request


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reference(ray_here, training, folder):
    """The uninterrupted run with two workers, and its request."""
    made = request(training, folder, "reference")
    return made, train(made)


def losses(result):
    return [row["loss"] for row in result.curve]


def test_run_learns_and_writes_weights_that_load(reference, training):
    from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor

    made, result = reference
    assert losses(result)[-1] < losses(result)[0] - 0.1
    assert [row["step"] for row in result.curve] == made.tracker.steps == list(range(5, STEPS + 1, 5))
    assert read_curve((made.out / "curve.csv").read_bytes()) == result.curve
    assert (result.steps, result.resumed_from) == (STEPS, 0)
    assert len(result.stalls) == STEPS // EVERY
    MiniGPTForConditionalGeneration.from_trainable(result.weights, backbones=training[0])
    assert MiniGPTProcessor.from_pretrained(result.weights).num_image_tokens == 4


def test_store_holds_trained_weights_once(reference, folder):
    made, result = reference
    files = [Path(uri) for uri in Store(made.store_root).list(made.store_root) if uri.endswith("trainable.safetensors")]
    (stored,) = [file for file in files if made.out not in file.parents]
    assert stored.parent == Path(ArtifactStore(Store(made.store_root)).uri(result.digest))


def test_finished_run_returns_at_once(reference, training, folder):
    made, result = reference
    Path(made.out / "curve.csv").unlink()
    again = train(request(training, folder, "reference"))
    assert (again.sha256, again.curve, again.resumed_from) == (result.sha256, result.curve, STEPS)


def test_curve_is_independent_of_workers_and_feature_cache(short, cached):
    assert losses(cached) == pytest.approx(losses(short), rel=1e-5)


def test_sharded_weights_train_as_replicated_ones(short, training, folder):
    split = train(request(training, folder, "split", parallelism="fsdp", **SHORT))
    assert losses(split) == pytest.approx(losses(short), rel=1e-5)


def until(condition, what):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def wait_for_step(run_uri, after):
    """Returns when the curve has reached a step, which must not be the training's last."""
    curve = Path(run_uri) / "curve.csv"
    until(lambda: curve.exists() and _last(curve) >= after, f"step {after}")
    assert _last(curve) < STEPS, "too late: the training is over"


def _last(curve):
    return max((row["step"] for row in read_curve(curve.read_bytes())), default=0)


def training_workers():
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            found += [child] if "RayTrainWorker" in " ".join(child.cmdline()) else []
    return found


def until_workers_ended():
    """Returns when the workers of an earlier training have ended, which takes a moment."""
    until(lambda: not training_workers(), "the workers' end")


DRIVER = """
import sys
from pathlib import Path
import ray
from mgpt.execution.train import train
from tests.fixtures.training_runs import request
from mgpt.storage import Manifest
folder, backbones, manifest = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=False)
backbones = {part: f"{backbones}/{part}" for part in ("vision", "language")}
train(request((backbones, Manifest.load(manifest)), Path(folder), "disturbed"))
"""


def kill_driver(training, folder):
    """Starts the disturbed training in a process with its own Ray, preempts a worker, and later kills process and Ray.

    Returns the step of the checkpoint that the preempted worker saved.
    """
    backbones, manifest = training
    manifest.save(folder / "manifest.json")
    arguments = [str(folder), str(Path(backbones["vision"]).parent), str(folder / "manifest.json")]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])
    try:
        saved = preempt_worker(str(folder / "runs" / "disturbed"), after=20)
        wait_for_step(str(folder / "runs" / "disturbed"), after=saved + 2 * EVERY)
    finally:
        for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()
    return saved


def preempt_worker(run_uri, after):
    """Sends SIGTERM between two regular checkpoints; returns the step of the one saved before the worker ends."""
    wait_for_step(run_uri, after)
    worker = training_workers()[-1]
    worker.terminate()
    worker.wait(120)
    saved = CheckpointStore(run_uri).latest_step()
    return saved if saved % EVERY else preempt_worker(run_uri, saved + 10)  # that one was due at this very step


def damage_checkpoint(run_uri):
    """Alters the newest checkpoint when workers begin to start: the driver has found it whole, they will not."""
    until(training_workers, "a worker")
    path = Path(CheckpointStore(run_uri).latest().uri) / "parameters.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"none")


def test_same_bits_after_every_disturbance(reference, training, folder, capsys):
    """A worker is preempted; driver and Ray are killed; the run that resumes finds a damaged checkpoint."""
    made = request(training, folder, "disturbed")
    until_workers_ended()
    saved = kill_driver(training, folder)
    until_workers_ended()
    with ThreadPoolExecutor(1) as other:
        damaged = other.submit(damage_checkpoint, made.run_uri)
        result = train(made)
        damaged.result()
    assert EVERY < saved < result.resumed_from < STEPS
    output = capsys.readouterr().out
    assert "altered since it was written (sha256 of parameters.safetensors differs)" in output
    assert "resumes from step" in output
    assert (result.sha256, losses(result)) == (reference[1].sha256, losses(reference[1]))
    assert [row["step"] for row in result.curve] == reference[0].tracker.steps
    assert made.tracker.steps == reference[0].tracker.steps


def test_altered_weights_are_written_again(reference, training, folder):
    made, result = reference
    stored = Path(ArtifactStore(Store(made.store_root)).uri(result.digest)) / "trainable.safetensors"
    stored.write_bytes(stored.read_bytes()[:-4] + b"none")
    with pytest.raises(ValueError, match="altered"):
        train(request(training, folder, "reference"))
    again = train(request(training, folder, "reference"))
    assert (again.digest, again.curve, again.resumed_from) == (result.digest, result.curve, STEPS)


def test_missing_dataset_is_refused_before_workers_start(ray_here, training, folder):
    with pytest.raises(ValueError, match=r"mixture: no train data for nothing; the manifest holds chat, scenes"):
        train(request(training, folder, "refused", mixture={"nothing": 1}))
    assert not (folder / "runs" / "refused").exists()
