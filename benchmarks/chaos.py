"""Kills in the middle of small real trainings on a Ray cluster of three nodes: does every run end with the weights of one left in peace?

Each trial trains the same thing with two workers in a run of its own, and kills -9, at a random step, one of: a training worker, the
driver (which is then started again), or the Ray node of a worker (which is replaced). A trial holds when the weights' sha256 and every
loss of the curve are those of the undisturbed run. The ledger of the run names the samples of each step; they are compared with the
mixture's plan: lost are those that no step consumed in their place, repeated those that one consumed too often. Two more runs go from
2 workers to 1 and back, one moved by killing its driver, one elastic, by killing nodes and starting one; their losses are compared
with an undisturbed run's, all without dropout, which every worker draws for itself. A third one loses a node that Ray was told of before,
as a cloud takes back a spot machine.

Run: python -m benchmarks.chaos [--trials 20] [--seed 0] [--no-resize] [--out FILE]. The last line is the summary as JSON.
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

import psutil

from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.execution.train import CURVE, FINISHED, LEDGER, TrainRequest, read_curve, train
from mgpt.storage import Manifest, Store
from mgpt.training.callbacks.sample_log import audit

STEPS, LONGER = 40, 500  # of a trial; of the elastic run, in whose midst nodes come up
NODES = 3  # of them two have a worker, so one can die
NODE_CPUS = 3.0  # a worker and a feeding task
NOTICE_SECONDS = 10
LIMIT = 420  # seconds that a trial may take
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
# Small models compute for milliseconds; what a kill meets is the same as in a long training.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
}


def trained(folder: Path, address: str, name: str, workers: str, dropout: float, steps: int, failures: int) -> None:
    """What a driver does: the run `name`, from where it stands to its end. `workers` is a number, or a range as `1-2`; `failures` how often
    its workers may fail."""
    import ray

    ray.init(address=address, log_to_driver=False)
    backbones = {part: str(folder / "backbones" / part) for part in ("vision", "language")}
    out = folder / "out" / name
    out.mkdir(parents=True, exist_ok=True)
    least, _, most = workers.partition("-")
    size = {"workers": int(least), "maximum_workers": int(most) if most else None, "resize_seconds": 5}
    group = WorkerSettings(**size, cpus_per_worker=2, cpus_per_feed=0.5, failures=failures, sample_log=True)
    settings = SETTINGS.model_copy(update={"steps": steps})
    fresh = {"merge": 4, "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": dropout}}
    train(
        TrainRequest(
            settings,
            group,
            Manifest.load(folder / "manifest.json"),
            backbones,
            str(folder / "runs" / name),
            out,
            fresh=fresh,
        )
    )


class Cluster:
    """Ray nodes on this machine that can be killed one by one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        # A node that is gone is noticed in seconds, not in half a minute.
        noticed = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        self._options = {"num_cpus": NODE_CPUS, "object_store_memory": 100 << 20}
        head = {**self._options, "include_dashboard": False, "_system_config": noticed}
        self._nodes = Nodes(initialize_head=True, head_node_args=head)
        self._others = [self._nodes.add_node(**self._options) for _ in range(NODES - 1)]

    @property
    def address(self) -> str:
        return str(self._nodes.address)

    def kill_a_node(self) -> bool:
        """Kills a node that is not the head and has a training worker, with all its processes; starts another in its place."""
        for node in self._others:
            if any(is_worker(process) for process in family(node)):
                self._kill(node)
                self.grow()
                return True
        return False

    def take_back(self, seconds: int) -> Callable[[], None]:
        """Tells Ray that a node with a worker goes in so many seconds; returns what makes it go, for another in its place."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        node = next(node for node in self._others if any(is_worker(process) for process in family(node)))
        reason, deadline = (
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            int((time.time() + seconds) * 1000),
        )
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "taken back", deadline)
        assert accepted, why

        def gone() -> None:
            self._kill(node)
            self.grow()

        return gone

    def shrink(self) -> None:
        """Kills all nodes but the head."""
        for node in list(self._others):
            self._kill(node)

    def grow(self) -> None:
        """Starts one more node."""
        self._others.append(self._nodes.add_node(**self._options))

    def _kill(self, node: Any) -> None:
        for process in family(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._others.remove(node)

    def workers(self) -> list[psutil.Process]:
        """The training workers of all nodes."""
        mine = psutil.Process().children(recursive=True)
        return [process for process in mine if is_worker(process)]

    def stop(self) -> None:
        self._nodes.shutdown()


def family(node: Any) -> list[psutil.Process]:
    """The raylet of a node, and all processes that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is a training worker."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


class Trials:
    """One folder of runs on one cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        from tests.fixtures.training_data import make_backbones, make_data

        self.folder, self.cluster = folder, cluster
        self.noticed: int | None = None  # the step that was kept when the run was told that a node goes
        make_backbones(folder / "backbones")
        make_data(Store(str(folder / "data"))).save(folder / "manifest.json")

    def driver(
        self, name: str, workers: str = "2", dropout: float = 0.1, steps: int = STEPS, failures: int = 5
    ) -> subprocess.Popen[bytes]:
        asked = [
            "--train",
            str(self.folder),
            self.cluster.address,
            name,
            workers,
            str(dropout),
            str(steps),
            str(failures),
        ]
        command = [sys.executable, "-m", "benchmarks.chaos", *asked]
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)

    def step(self, name: str) -> int:
        """The last step that the run has shown."""
        curve = self.folder / "runs" / name / CURVE
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            return int(read_curve(curve.read_bytes())[-1]["step"])
        return 0

    def wait(self, name: str, driver: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
        """Returns when `reached`. Raises RuntimeError with the driver's last words when it fails or takes too long."""
        deadline = time.monotonic() + LIMIT
        while not reached():
            if driver.poll() not in (None, 0) or time.monotonic() > deadline:
                driver.kill()
                raise RuntimeError(f"{name}: {(self.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.01)

    def finish(self, name: str, driver: subprocess.Popen[bytes]) -> None:
        self.wait(name, driver, lambda: driver.poll() == 0)

    def disturbed(self, name: str, kind: str, at: int) -> int:
        """A run with a kill of this kind at step `at`; returns the step at which it came."""
        driver = self.driver(name)
        self.wait(name, driver, lambda: self.step(name) >= at)
        came = self.step(name)
        if kind == "worker":
            assert self.cluster.workers(), "the run was over before the kill"
            random.Random(at).choice(self.cluster.workers()).kill()
        elif kind == "node":
            assert self.cluster.kill_a_node(), "no node but the head has a worker"
        else:
            driver.kill()
            driver.wait()
            driver = self.driver(name)
        self.finish(name, driver)
        return came

    def moved(self, name: str) -> None:
        """A run on 2 workers, then 1, then 2, moved by killing its driver."""
        for workers, until in (("2", 12), ("1", 26)):
            driver = self.driver(name, workers, dropout=0.0)
            self.wait(name, driver, lambda until=until: self.step(name) >= until)  # type: ignore[misc]
            driver.kill()
            driver.wait()
        self.finish(name, self.driver(name, "2", dropout=0.0))

    def elastic(self, name: str) -> None:
        """A run whose nodes with workers die but for one, and get company again."""
        driver = self.driver(name, "1-2", dropout=0.0, steps=LONGER)
        self.wait(name, driver, lambda: self.step(name) >= 30)
        self.cluster.shrink()
        shrunk = self.step(name)
        self.wait(name, driver, lambda: self.step(name) >= shrunk + 30)
        self.cluster.grow()
        self.finish(name, driver)

    def preempted(self, name: str) -> None:
        """A run one of whose nodes goes, as Ray was told ten seconds before. It keeps a checkpoint at once, and no failure is counted."""
        driver = self.driver(name, "2", dropout=0.0, steps=LONGER, failures=0)
        self.wait(name, driver, lambda: self.step(name) >= 30)
        gone = self.cluster.take_back(NOTICE_SECONDS)
        deadline = time.monotonic() + NOTICE_SECONDS
        self.wait(
            name, driver, lambda: bool(self.kept(name) % SETTINGS.checkpoint_every) or time.monotonic() > deadline
        )
        self.noticed = self.kept(name)
        assert self.noticed % SETTINGS.checkpoint_every, f"no checkpoint but those due came in {NOTICE_SECONDS} s"
        self.wait(name, driver, lambda: time.monotonic() > deadline)
        assert driver.poll() is None, "the run was over before its node went"
        gone()
        self.finish(name, driver)

    def kept(self, name: str) -> int:
        """The step of the last checkpoint that counts."""
        from mgpt.execution.data_feed import committed_step

        return committed_step(str(self.folder / "runs" / name))

    def workers(self, name: str) -> list[list[int]]:
        """[workers, steps] of each stretch of steps with the same number of workers."""
        return [
            [number, len(list(steps))] for number, steps in groupby(entry["workers"] for entry in self.ledger(name))
        ]

    def ledger(self, name: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads((self.folder / "runs" / name / LEDGER).read_text())
        return entries

    def audited(self, name: str, steps: int = STEPS) -> dict[str, int]:
        """How many samples the run lost and repeated."""
        from mgpt.execution.data_feed import Feed, SampleReader
        from mgpt.models.loading import ModelSpec

        feed = Feed.of(
            SETTINGS.model_copy(update={"steps": steps}),
            Manifest.load(self.folder / "manifest.json"),
            ModelSpec({}, None),
        )
        mixture, reader = feed.mixture(), SampleReader(feed.entries())

        def planned(step: int) -> list[str]:
            samples = [reader.read(pick.dataset, pick.index) for pick in mixture.batch(step)]
            return [f"{sample.dataset}:{sample.id}" for sample in samples]

        lost, repeated = audit(self.ledger(name), planned, steps)
        return {"lost": lost, "repeated": repeated}

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in read_curve((self.folder / "runs" / name / CURVE).read_bytes())]

    def outcome(self, name: str) -> tuple[str, list[float]]:
        finished = json.loads((self.folder / "runs" / name / FINISHED).read_text())
        return finished["sha256"], self.losses(name)


def kills(trials: Trials, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The result of each trial when it is done."""
    rng = random.Random(seed)
    trials.finish("calm", trials.driver("calm"))
    calm = trials.outcome("calm")
    for number in range(count):
        name, kind, at = f"trial-{number:02d}", ("node", "worker", "driver")[number % 3], rng.randrange(1, STEPS - 1)
        began = time.monotonic()
        result: dict[str, Any] = {"trial": number, "killed": kind, "planned": at}
        try:
            result["step"] = trials.disturbed(name, kind, at)
            result |= {"identical": trials.outcome(name) == calm, **trials.audited(name)}
        except (
            Exception
        ) as error:  # a trial that could not be held counts as one that failed, and the next one is tried
            result |= {"identical": False, "error": f"{type(error).__name__}: {error}"}
        yield {**result, "seconds": round(time.monotonic() - began, 1)}


def resizes(trials: Trials) -> Iterator[dict[str, Any]]:
    """The result of each run that changes its number of workers, or has to go to another node."""
    for name, steps in (("moved", STEPS), ("elastic", LONGER), ("preempted", LONGER)):
        calm, began = f"calm-{steps}", time.monotonic()
        try:
            trials.finish(calm, trials.driver(calm, dropout=0.0, steps=steps))  # at once, if it ran before
            getattr(trials, name)(name)
            pairs = zip(trials.losses(name), trials.losses(calm), strict=True)
            found = {
                "loss_difference": max(abs(one - other) / other for one, other in pairs),
                **trials.audited(name, steps),
            }
            result = {"resized": name, "workers": trials.workers(name), **found}
            if name == "preempted":
                result["checkpoint_on_notice"] = trials.noticed
        except Exception as error:
            result = {"resized": name, "error": f"{type(error).__name__}: {error}"}
        yield {**result, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Runs the trials, writes the result after each, prints the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chaos.json")
    parser.add_argument("--no-resize", action="store_true", help="leave out the runs that move")
    parser.add_argument(
        "--train", nargs=7, metavar=("FOLDER", "ADDRESS", "NAME", "WORKERS", "DROPOUT", "STEPS", "FAILURES")
    )
    asked = parser.parse_args()
    if asked.train:
        folder, address, name, workers, dropout, steps, failures = asked.train
        trained(Path(folder), address, name, workers, float(dropout), int(steps), int(failures))
        return
    os.environ.update({"PYTHONPATH": str(Path(__file__).parents[1]), **ENVIRONMENT})
    results: list[dict[str, Any]] = []

    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster()
        try:
            trials = Trials(Path(folder), cluster)
            killed = kills(trials, asked.trials, asked.seed) if asked.trials else ()
            for result in chain(() if asked.no_resize else resizes(trials), killed):
                results.append(result)
                print(json.dumps(result), flush=True)
                asked.out.write_text(
                    json.dumps({"summary": summary(results), "machine": machine(), "trials": results}, indent=1) + "\n"
                )
        finally:
            cluster.stop()
    print(json.dumps(summary(results)))


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How many trials there were and held, all samples lost and repeated in runs that ended, and the largest relative difference of a
    loss in runs that changed their number of workers."""
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
    """What it ran on."""
    import ray
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}
    return {**versions, "cpus": os.cpu_count(), "date": date.today().isoformat(), "steps": STEPS, "workers": 2}


if __name__ == "__main__":
    main()
