"""Trains on Ray: a `TorchTrainer` around `mgpt.training.trainer`, fed by Ray Data, followed by the driver.

A run is identified by its URI, which ends in the stage's fingerprint. The same request resumes its last complete
checkpoint; a finished run returns at once. Below the URI lie `checkpoints/`, `curve.csv` as it grows, and at the end
`finished.json`, which names the trained weights in the artifact store.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from typing import Any

import ray
import ray.data
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

from mgpt.config.training import WorkerSettings
from mgpt.execution.checkpoints import CheckpointStore
from mgpt.execution.compat import check_version
from mgpt.execution.curve import CurveFollower, read_curve
from mgpt.execution.data_feed import DATASET, DataPlan, MixtureDataConfig, batch_builder
from mgpt.execution.types import (
    CURVE,
    FINISHED,
    STARTED,
    WEIGHTS,
    CacheReport,
    TrainRequest,
    TrainResult,
    WorkerArgs,
)
from mgpt.execution.worker_env import worker_environment
from mgpt.models.loading import ModelSpec
from mgpt.storage import Store
from mgpt.storage.artifacts import ArtifactStore


def train(request: TrainRequest) -> TrainResult:
    """Trains, resumes, or returns a finished run at once, on the Ray that this process is connected to.

    Raises:
        ValueError: the request cannot work, or the loss or gradient became non-finite (the message names the samples).
        RuntimeError: workers failed more often than `workers.failures`.
    """
    check_version()
    store = Store(request.run_uri)
    if store.exists(f"{request.run_uri}/{FINISHED}"):
        return _collect(request, store, resumed_from=request.settings.steps)
    checkpoints = CheckpointStore(request.run_uri)
    checkpoints.drop_corrupt_checkpoints()
    resumed_from = checkpoints.latest_step()
    plan = DataPlan.from_settings(request.settings, request.manifest, _initial_model(request), request.task_files)
    plan.mixture()  # an impossible mixture is refused before any worker starts
    store.write(f"{request.run_uri}/{STARTED}", b"{}")
    cached = _fill_cache(request, plan)
    with CurveFollower(request):
        while (damage := _fit(request, replace(plan, features=cached.folder if cached else None))) is not None:
            if not checkpoints.drop_corrupt_checkpoints():
                raise RuntimeError(
                    f"a worker read a damaged checkpoint that is whole for the driver: {damage}; "
                    "check the network and the disks between them"
                )
    checkpoints.delete_orphaned_checkpoints()
    return replace(_collect(request, store, resumed_from), cached=cached)


def _initial_model(request: TrainRequest) -> ModelSpec:
    """Returns what the model starts from. Weights are read from the artifact store, which holds them once."""
    artifacts = ArtifactStore(Store(request.store_root))
    weights = None if request.weights is None else artifacts.uri(artifacts.put(request.weights))
    return ModelSpec(request.backbones, weights, request.init, request.loading)


def _fill_cache(request: TrainRequest, plan: DataPlan) -> CacheReport | None:
    """Fills the feature cache, if one is requested, while a process imports what it needs to build batches."""
    environment = {"env_vars": worker_environment(request.workers)}
    warmed = ray.remote(num_cpus=0, runtime_env=environment)(_warm_up).remote(plan)
    if request.features is None:
        return None
    from mgpt.execution.feature_cache import fill_cache  # imports torch, while that process starts

    cached = fill_cache(plan, request.settings, request.workers, request.features, warmed)
    print(f"features: {cached.estimate()}", flush=True)
    return cached


def _warm_up(plan: DataPlan) -> None:
    batch_builder(plan)


def _fit(request: TrainRequest, plan: DataPlan) -> str | None:
    """Trains to the end. Returns the damage if the checkpoint to resume from is damaged."""
    from ray.train.torch import TorchTrainer

    from mgpt.execution.preemption import SignalTorchConfig

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().print_on_execution_start = False
    workers = request.workers
    args = WorkerArgs(request.settings, workers, plan.model, request.store_root, request.run_uri)
    # Ray keeps its own records here, on the driver's node. Everything that a run needs is in the store.
    with tempfile.TemporaryDirectory(prefix="mgpt-train-") as folder:
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]  # Ray annotates the forms of its older trainer
            train_loop_config={"args": args},
            datasets={DATASET: _no_dataset},
            dataset_config=MixtureDataConfig(plan, request.run_uri, workers.cpus_per_feed),
            # Gloo besides NCCL: what workers agree on about a step does not pass through the device.
            torch_config=SignalTorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpus_per_worker else "gloo"),
            scaling_config=_scaling(workers),
            run_config=RunConfig(  # type: ignore[call-arg]
                name=request.run_uri.rsplit("/", 1)[1],
                storage_path=folder,
                failure_config=FailureConfig(max_failures=workers.failures),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={"env_vars": worker_environment(workers)},
            ),
        )
        try:
            outcome: dict[str, Any] = dict(trainer.fit().return_value)  # type: ignore[attr-defined]
        except TrainingFailedError as error:
            raise RuntimeError(
                f"training failed more often than cluster.training.failures ({workers.failures}) allows; "
                f"run it again to resume from the last checkpoint. {error}"
            ) from error
    if "refused" in outcome:
        raise ValueError(outcome["refused"])
    return outcome.get("damaged")


def _scaling(workers: WorkerSettings) -> Any:
    options: dict[str, Any] = {  # untyped: Ray annotates its older trainer's options
        "num_workers": (workers.workers, workers.maximum_workers) if workers.maximum_workers else workers.workers,
        "use_gpu": workers.gpus_per_worker > 0,
        "resources_per_worker": {"CPU": workers.cpus_per_worker},
        "elastic_resize_monitor_interval_s": workers.resize_seconds,
    }
    if workers.gpus_per_worker:
        options["resources_per_worker"]["GPU"] = workers.gpus_per_worker
    return ScalingConfig(**options)


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's training function. The driver and Ray Train's controller hold it too, without the model's code."""
    from mgpt.execution.train_worker import work

    return work(config["args"])


def _no_dataset() -> Any:
    """Stands in for the dataset that Ray Train requires; `MixtureDataConfig` makes the real ones, one per worker."""
    return ray.data.range(1)


def _collect(request: TrainRequest, store: Store, resumed_from: int) -> TrainResult:
    """Copies a finished run's small outputs to `out`. Raises ValueError if the trained weights are gone or altered."""
    finished = json.loads(store.read(f"{request.run_uri}/{FINISHED}"))
    weights = request.out / WEIGHTS
    shutil.rmtree(weights, ignore_errors=True)
    try:
        ArtifactStore(Store(request.store_root)).get(finished["weights"], weights)
    except ValueError as error:
        store.delete(f"{request.run_uri}/{FINISHED}")
        raise ValueError(
            f"trained weights of {request.run_uri}: {error}; run the stage again to write them from the last checkpoint"
        ) from error
    curve = store.read(f"{request.run_uri}/{CURVE}")
    (request.out / CURVE).write_bytes(curve)
    return TrainResult(
        weights=weights,
        digest=finished["weights"],
        curve=read_curve(curve),
        steps=finished["steps"],
        resumed_from=resumed_from,
        sha256=finished["sha256"],
        stalls=tuple(finished["stalls"]),
    )
