"""Kills processes and nodes in small trainings on a Ray cluster of three nodes, and compares results bit by bit.

Each trial is the same training by two workers, and one SIGKILL at a random step: of a training worker, of the driver
(which is restarted), or of the Ray node of a worker (which is replaced). A trial holds if the weights' sha256 and every
loss of the curve are those of an undisturbed run. The run's sample log, which names the samples of each step, is
compared with the mixture's plan: samples that no step consumed in their place are lost, those that one consumed too
often are repeated. Three more runs change their workers: one goes from 2 to 1 and back by killing its driver; an
elastic one does so by killing nodes and starting one; and one loses a node after a preemption notification, as from a
cloud that takes back a spot machine. Their losses are compared with an undisturbed run's, all without dropout, which
depends on the worker.

Run: python -m benchmarks.chaos [--trials 20] [--seed 0] [--no-resize] [--out FILE]. The last line is a summary as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from benchmarks.ray_nodes import Cluster
from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.data.shards import SampleReader
from mgpt.execution.checkpoints import CheckpointStore
from mgpt.execution.curve import read_curve
from mgpt.execution.types import CURVE, FINISHED, SAMPLE_LOG, TrainRequest
from mgpt.storage import Manifest, Store
from mgpt.training.callbacks.sample_log import audit

STEPS, LONGER = 40, 500  # of a trial; of a run during which nodes start
NOTICE_SECONDS = 10  # from the notification of a preemption to the end of the node
LIMIT = 420  # seconds per trial
SETTINGS = TrainingSettings(
    format="minigpt-v2",
    mixture={"scenes": 3, "chat": 1},
    steps=STEPS,
    global_batch_size=8,
    micro_batch_size=4,
    learning_rate=1e-2,
    warmup_steps=5,
    log_every=1,
    checkpoint_every=5,
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
}


def drive(folder: Path, address: str, name: str, workers: str, dropout: float, steps: int, failures: int) -> None:
    """Runs or resumes the run `name` to its end, as a driver does.

    Args:
        workers: a number, or a range as `1-2`.
        failures: number of failures of the workers that are allowed.
    """
    import ray

    from mgpt.execution.train import train

    ray.init(address=address, log_to_driver=False)
    out = folder / "out" / name
    out.mkdir(parents=True, exist_ok=True)
    least, _, most = workers.partition("-")
    group = WorkerSettings(
        workers=int(least),
        maximum_workers=int(most) if most else None,
        resize_seconds=5,
        cpus_per_worker=2,
        cpus_per_feed=0.5,
        failures=failures,
        sample_log=True,
    )
    request = TrainRequest(
        SETTINGS.model_copy(update={"steps": steps}),
        group,
        Manifest.load(folder / "manifest.json"),
        {part: str(folder / "backbones" / part) for part in ("vision", "language")},
        store_root=str(folder / "store"),
        run_uri=str(folder / "runs" / name),
        out=out,
        init={"merge": 4, "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": dropout}},
    )
    train(request)


class Trials:
    """The runs of one folder, on one cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        from tests.fixtures.training_data import make_backbones, make_data

        self.folder, self.cluster = folder, cluster
        self.saved_on_preemption: int | None = None  # step of that checkpoint
        make_backbones(folder / "backbones")
        make_data(Store(str(folder / "data"))).save(folder / "manifest.json")

    def driver(
        self, name: str, workers: str = "2", dropout: float = 0.1, steps: int = STEPS, failures: int = 5
    ) -> subprocess.Popen[bytes]:
        """Starts a process that drives a run."""
        arguments = [self.folder, self.cluster.address, name, workers, dropout, steps, failures]
        command = [sys.executable, "-m", "benchmarks.chaos", "--train", *map(str, arguments)]
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)

    def step(self, name: str) -> int:
        """Returns the last step of the run's curve."""
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            return int(read_curve((self.folder / "runs" / name / CURVE).read_bytes())[-1]["step"])
        return 0

    def wait(self, name: str, driver: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
        """Returns when `reached`. Raises RuntimeError with the end of the driver's log if it fails or is late."""
        deadline = time.monotonic() + LIMIT
        while not reached():
            if driver.poll() not in (None, 0) or time.monotonic() > deadline:
                driver.kill()
                raise RuntimeError(f"{name}: {(self.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.01)

    def finish(self, name: str, driver: subprocess.Popen[bytes]) -> None:
        self.wait(name, driver, lambda: driver.poll() == 0)

    def disturbed(self, name: str, kind: str, at: int) -> int:
        """Runs with a kill of this kind at step `at`; returns the step at which it came."""
        driver = self.driver(name)
        self.wait(name, driver, lambda: self.step(name) >= at)
        step = self.step(name)
        if kind == "worker":
            assert self.cluster.workers(), "the run was over before the kill"
            random.Random(at).choice(self.cluster.workers()).kill()
        elif kind == "node":
            self.cluster.replace_node()
        else:
            driver.kill()
            driver.wait()
            driver = self.driver(name)
        self.finish(name, driver)
        return step

    def moved(self, name: str) -> None:
        """Runs on 2 workers, then 1, then 2, changed by killing the driver."""
        for workers, until in (("2", 12), ("1", 26)):
            driver = self.driver(name, workers, dropout=0.0)
            self.wait(name, driver, lambda until=until: self.step(name) >= until)  # type: ignore[misc]
            driver.kill()
            driver.wait()
        self.finish(name, self.driver(name, "2", dropout=0.0))

    def elastic(self, name: str) -> None:
        """Runs while all nodes but the head are killed, and later one starts."""
        driver = self.driver(name, "1-2", dropout=0.0, steps=LONGER)
        self.wait(name, driver, lambda: self.step(name) >= 30)
        self.cluster.shrink()
        shrunk = self.step(name)
        self.wait(name, driver, lambda: self.step(name) >= shrunk + 30)
        self.cluster.grow()
        self.finish(name, driver)

    def preempted(self, name: str) -> None:
        """Runs while a node is preempted, which saves a checkpoint at once and counts as no failure."""
        driver = self.driver(name, "2", dropout=0.0, steps=LONGER, failures=0)
        self.wait(name, driver, lambda: self.step(name) >= 30)
        end_node = self.cluster.preempt_node(NOTICE_SECONDS)
        deadline = time.monotonic() + NOTICE_SECONDS
        self.wait(
            name, driver, lambda: bool(self.saved(name) % SETTINGS.checkpoint_every) or time.monotonic() > deadline
        )
        self.saved_on_preemption = self.saved(name)
        assert self.saved_on_preemption % SETTINGS.checkpoint_every, f"only regular checkpoints in {NOTICE_SECONDS} s"
        self.wait(name, driver, lambda: time.monotonic() > deadline)
        assert driver.poll() is None, "the run was over before its node ended"
        end_node()
        self.finish(name, driver)

    def saved(self, name: str) -> int:
        """Returns the step of the newest checkpoint that was not due, else of the newest."""
        steps = [found.step for found in CheckpointStore(str(self.folder / "runs" / name)).committed()]
        return next((step for step in reversed(steps) if step % SETTINGS.checkpoint_every), max(steps, default=0))

    def workers(self, name: str) -> list[list[int]]:
        """Returns [workers, steps] of each stretch of steps with the same number of workers."""
        numbers = (entry["workers"] for entry in self.sample_log(name))
        return [[number, len(list(steps))] for number, steps in groupby(numbers)]

    def sample_log(self, name: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads((self.folder / "runs" / name / SAMPLE_LOG).read_text())
        return entries

    def audited(self, name: str, steps: int = STEPS) -> dict[str, int]:
        """Returns how many samples the run lost and repeated."""
        from mgpt.execution.data_feed import DataPlan
        from mgpt.models.loading import ModelSpec

        settings = SETTINGS.model_copy(update={"steps": steps})
        plan = DataPlan.from_settings(settings, Manifest.load(self.folder / "manifest.json"), ModelSpec({}, None))
        mixture, reader = plan.mixture(), SampleReader(plan.entries())

        def planned(step: int) -> list[str]:
            samples = reader.read([(pick.dataset, pick.index) for pick in mixture.batch(step)])
            return [f"{sample.dataset}:{sample.id}" for sample in samples]

        lost, repeated = audit(self.sample_log(name), planned, steps)
        return {"lost": lost, "repeated": repeated}

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in read_curve((self.folder / "runs" / name / CURVE).read_bytes())]

    def result(self, name: str) -> tuple[str, list[float]]:
        """Returns the weights' sha256 and all losses."""
        finished = json.loads((self.folder / "runs" / name / FINISHED).read_text())
        return finished["sha256"], self.losses(name)


def kills(trials: Trials, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the result of each trial."""
    rng = random.Random(seed)
    trials.finish("calm", trials.driver("calm"))
    calm = trials.result("calm")
    for number in range(count):
        name, kind, at = f"trial-{number:02d}", ("node", "worker", "driver")[number % 3], rng.randrange(1, STEPS - 1)
        began = time.monotonic()
        result: dict[str, Any] = {"trial": number, "killed": kind, "planned": at}
        try:
            result["step"] = trials.disturbed(name, kind, at)
            result |= {"identical": trials.result(name) == calm, **trials.audited(name)}
        except Exception as error:  # counts as a failed trial; the next one follows
            result |= {"identical": False, "error": f"{type(error).__name__}: {error}"}
        yield {**result, "seconds": round(time.monotonic() - began, 1)}


def resizes(trials: Trials) -> Iterator[dict[str, Any]]:
    """Yields the result of each run that changes its workers."""
    for name, steps in (("moved", STEPS), ("elastic", LONGER), ("preempted", LONGER)):
        calm, began = f"calm-{steps}", time.monotonic()
        try:
            trials.finish(calm, trials.driver(calm, dropout=0.0, steps=steps))  # returns at once if it ran before
            getattr(trials, name)(name)
            pairs = zip(trials.losses(name), trials.losses(calm), strict=True)
            found = {
                "loss_difference": max(abs(one - other) / other for one, other in pairs),
                **trials.audited(name, steps),
            }
            result = {"resized": name, "workers": trials.workers(name), **found}
            if name == "preempted":
                result["checkpoint_on_notice"] = trials.saved_on_preemption
        except Exception as error:
            result = {"resized": name, "error": f"{type(error).__name__}: {error}"}
        yield {**result, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Runs the trials, and writes the results after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chaos.json")
    parser.add_argument("--no-resize", action="store_true", help="leave out the runs that change their workers")
    parser.add_argument(
        "--train", nargs=7, metavar=("FOLDER", "ADDRESS", "NAME", "WORKERS", "DROPOUT", "STEPS", "FAILURES")
    )
    arguments = parser.parse_args()
    if arguments.train:
        folder, address, name, workers, dropout, steps, failures = arguments.train
        drive(Path(folder), address, name, workers, float(dropout), int(steps), int(failures))
        return
    os.environ.update({"PYTHONPATH": str(Path(__file__).parents[1]), **ENVIRONMENT})
    results: list[dict[str, Any]] = []

    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster()
        try:
            trials = Trials(Path(folder), cluster)
            killed = kills(trials, arguments.trials, arguments.seed) if arguments.trials else ()
            for result in chain(() if arguments.no_resize else resizes(trials), killed):
                results.append(result)
                print(json.dumps(result), flush=True)
                arguments.out.write_text(
                    json.dumps({"summary": summary(results), "machine": machine(), "trials": results}, indent=1) + "\n"
                )
        finally:
            cluster.stop()
    print(json.dumps(summary(results)))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the number of trials and of identical results, the samples lost and repeated in all runs, and the largest
    relative difference of a loss in runs that changed their workers."""
    trials = [result for result in results if "trial" in result]
    return {
        "trials": len(trials),
        "identical": sum(result["identical"] for result in trials),
        "lost": sum(result.get("lost", 0) for result in results),
        "repeated": sum(result.get("repeated", 0) for result in results),
        "resized": sum("loss_difference" in result for result in results),
        "loss_difference": max(
            (result["loss_difference"] for result in results if "loss_difference" in result), default=None
        ),
    }


def machine() -> dict[str, Any]:
    """Returns versions, CPUs and date."""
    import ray
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}
    return {**versions, "cpus": os.cpu_count(), "date": date.today().isoformat(), "steps": STEPS, "workers": 2}


if __name__ == "__main__":
    main()
