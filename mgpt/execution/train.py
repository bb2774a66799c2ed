"""Trains on Ray: a `TorchTrainer` around `mgpt.training.trainer`, fed by Ray Data, resumed by name, followed by the driver.

A run is its URI: Ray's run name is the URI's last part (the stage's fingerprint) and its storage path the rest. The same request again goes
on from the last committed checkpoint; a finished run returns at once. Below the URI lie Ray's checkpoints, `curve.csv` as it grows, and,
at the end, `weights/` and `finished.json`, and `ledger.json` where it is asked for.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.execution.worker_env import set_up_ray_train
from mgpt.models.loading import ModelSpec
from mgpt.storage import Manifest, Store, sha256_file

if TYPE_CHECKING:
    from mgpt.execution.data_feed import Feed
    from mgpt.execution.feature_cache import Cached

CURVE, LEDGER, WEIGHTS, FINISHED, START = "curve.csv", "ledger.json", "weights", "finished.json", "start"
_POLL_SECONDS = 0.5
_PLAIN = ("step", "step_seconds")  # columns that are no metric of their own


@dataclass(frozen=True)
class Work:
    """What a worker needs to know."""

    settings: TrainingSettings
    start: ModelSpec
    run_uri: str
    workers: WorkerSettings


class Tracker(Protocol):
    """What training needs of `mgpt.tracking.runs.Tracker`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...


@dataclass(frozen=True)
class TrainRequest:
    """One stage of training.

    `backbones` are folders or URIs of the backbones by part (`vision`, `language`, `qformer`); `weights` is the folder of the stage before, or
    None for a fresh model made with `fresh` (keywords of `MiniGPTForConditionalGeneration.from_bases`); `loading` says how either is held
    in memory, as in `ModelSpec`. `run_uri` ends in the stage's fingerprint. `out` is an existing local folder that gets `weights/` and
    `curve.csv`. `features` is where the store keeps the feature cache; None for none, whatever the settings say.
    """

    settings: TrainingSettings
    workers: WorkerSettings
    manifest: Manifest
    backbones: dict[str, str]
    run_uri: str
    out: Path
    weights: Path | None = None
    fresh: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    tracker: Tracker | None = None
    task_files: tuple[str, ...] = ()
    features: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """`weights` is the folder below `out`; `curve` its rows; `steps` are all steps of the run, `resumed_from` is the step this call
    started at (equal to `steps` where nothing was left to do); `sha256` is that of `trainable.safetensors`; `stalls` are the seconds for
    which each checkpoint since the last start of the workers held up training; `cached` is what the feature cache meant, or None where it
    was not asked."""

    weights: Path
    curve: list[dict[str, float]]
    steps: int
    resumed_from: int
    sha256: str
    stalls: tuple[float, ...] = ()
    cached: Cached | None = None


def train(request: TrainRequest) -> TrainResult:
    """Trains, or goes on, or returns at once what is finished. Uses the Ray that this process is connected to, else starts a local one.

    Raises:
        ValueError: the request cannot work, or the training met a number that is not finite (the message names the samples).
        RuntimeError: workers failed more often than `workers.failures`.
    """
    store = Store(request.run_uri)
    if store.exists(f"{request.run_uri}/{FINISHED}"):
        return _collect(request, store, request.settings.steps)
    from mgpt.execution.checkpoints import mend, tidy
    from mgpt.execution.data_feed import committed_step

    mend(request.run_uri)
    resumed_from = committed_step(request.run_uri)
    feed = _feed(request, store)
    cached = _cached(request, feed, _warm(feed, request.workers))
    with _Follower(request, store):
        fed = feed if cached is None else replace(feed, features=cached.folder)
        while (damaged := _fit(request, fed)) is not None:
            if not mend(request.run_uri):
                raise RuntimeError(
                    f"a worker read what the driver does not: {damaged}; look at the network and the disks between them"
                )
    tidy(request.run_uri)
    return replace(_collect(request, store, resumed_from), cached=cached)


def _feed(request: TrainRequest, store: Store) -> Feed:
    from mgpt.execution.data_feed import Feed

    feed = Feed.of(request.settings, request.manifest, _start(request, store), request.task_files)
    feed.mixture()  # a mixture that cannot be made is refused here, before any worker starts
    return feed


def _cached(request: TrainRequest, feed: Feed, warmed: Any) -> Cached | None:
    if request.features is None:
        return None
    from mgpt.execution.feature_cache import prepare

    cached = prepare(feed, request.settings, request.workers, request.features, warmed)
    print(f"features: {cached.estimate()}", flush=True)
    return cached


def _fit(request: TrainRequest, feed: Feed) -> str | None:
    """Trains to the end. Returns what is wrong when the checkpoint that workers should go on from is damaged."""
    import ray.data
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from mgpt.execution.data_feed import NAME, PlannedData
    from mgpt.execution.preemption import ListeningTorch

    set_up_ray_train(request.workers)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().print_on_execution_start = False
    workers, settings = request.workers, request.settings
    folder, name = request.run_uri.rsplit("/", 1)
    number = workers.workers if workers.maximum_workers is None else (workers.workers, workers.maximum_workers)
    resources = {"CPU": workers.cpus_per_worker} | ({"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {})
    scaling: dict[str, Any] = {
        "num_workers": number,
        "use_gpu": workers.gpus_per_worker > 0,
        "resources_per_worker": resources,
    }
    scaling["elastic_resize_monitor_interval_s"] = workers.resize_seconds
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # Ray annotates the older trainer's forms
        train_loop_config={"work": Work(settings, feed.start, request.run_uri, workers)},
        datasets={NAME: _no_dataset},
        dataset_config=PlannedData(feed, request.run_uri, workers.cpus_per_feed),
        # Gloo beside NCCL: what workers agree on about a step passes the device by.
        torch_config=ListeningTorch(backend="cpu:gloo,cuda:nccl" if workers.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=workers.failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
        ),
    )
    outcome = _outcome(trainer)
    if "refused" in outcome:
        raise ValueError(outcome["refused"])
    return outcome.get("damaged")


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's training function. What imports the model's code, which takes seconds, is imported in workers alone: this process and
    Ray Train's controller, which both hold the function, need none of it."""
    from mgpt.execution.train_worker import work

    return work(config["work"])


def _warm(feed: Feed, workers: WorkerSettings) -> Any:
    """Lets a process get ready for feeding while others start. Returns a reference that is ready when it is."""
    import ray

    return ray.remote(num_cpus=0, **set_up_ray_train(workers))(_prepare).remote(feed)


def _prepare(feed: Feed) -> None:
    from mgpt.execution.data_feed import preparer

    preparer(feed)


def _no_dataset() -> Any:
    """Ray Train asks for a dataset; `PlannedData` makes the real ones, one per worker."""
    import ray.data

    return ray.data.range(1)


def _outcome(trainer: Any) -> dict[str, Any]:
    from ray.train import TrainingFailedError

    try:
        return dict(trainer.fit().return_value)
    except TrainingFailedError as error:
        raise RuntimeError(
            f"training failed more often than allowed; run it again to go on from the last checkpoint. {error}"
        ) from error


def _start(request: TrainRequest, store: Store) -> ModelSpec:
    """The weights of the stage before lie on the driver's disk; workers elsewhere read them from the store."""
    weights = None if request.weights is None else f"{request.run_uri}/{START}"
    if weights is not None and request.weights is not None:
        store.put_folder(request.weights, weights)
    return ModelSpec(request.backbones, weights, request.fresh, request.loading)


def _collect(request: TrainRequest, store: Store, resumed_from: int) -> TrainResult:
    """Brings a finished run's small outputs to `out`. Raises ValueError when they are not what the run wrote."""
    finished = json.loads(store.read(f"{request.run_uri}/{FINISHED}"))
    weights = request.out / WEIGHTS
    store.fetch_folder(f"{request.run_uri}/{WEIGHTS}", weights)
    curve = store.read(f"{request.run_uri}/{CURVE}")
    (request.out / CURVE).write_bytes(curve)
    found = sha256_file(weights / "trainable.safetensors")
    if found != finished["sha256"]:
        what = f"{request.run_uri}/{WEIGHTS}: sha256 {found} is not the finished run's {finished['sha256']}"
        raise ValueError(f"{what}; delete the run's folder and train again")
    return TrainResult(weights, read_curve(curve), finished["steps"], resumed_from, found, tuple(finished["stalls"]))


def read_curve(content: bytes) -> list[dict[str, float]]:
    """The rows of a `curve.csv`."""
    return [
        {key: float(value) for key, value in row.items() if value}
        for row in csv.DictReader(io.StringIO(content.decode()))
    ]


class _Follower:
    """Watches the run's curve from the driver: prints a line per row, and logs each step to the tracker once.

    Worker 0 may repeat steps after a failure; they have the numbers of the first time, so what was shown already is passed over.
    """

    def __init__(self, request: TrainRequest, store: Store) -> None:
        self._request, self._store, self._shown = request, store, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._show()
        self._show()

    def _show(self) -> None:
        from mgpt.training.callbacks.metrics_logger import progress_line

        uri = f"{self._request.run_uri}/{CURVE}"
        for row in read_curve(self._store.read(uri)) if self._store.exists(uri) else []:
            if row["step"] > self._shown:
                self._shown = row["step"]
                print(progress_line(row, self._request.settings.steps), flush=True)
                if self._request.tracker is not None:
                    metrics = {key: value for key, value in row.items() if key not in _PLAIN}
                    self._request.tracker.log_metrics(metrics, step=int(row["step"]))
