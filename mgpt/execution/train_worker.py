"""A Ray Train worker: builds the trainer, resumes it, and writes the run's results."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.util import disable_log_once_globally

from mgpt.config.training import TrainingSettings
from mgpt.execution.checkpoints import CheckpointStore, retry_upload
from mgpt.execution.data_feed import DATASET, stream
from mgpt.execution.preemption import exit_if_signalled, is_preempted
from mgpt.execution.types import CURVE, FINISHED, SAMPLE_LOG, STARTED, WEIGHTS, WorkerArgs
from mgpt.models.compat import attention_implementation
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.storage import Store, sha256_file
from mgpt.storage.artifacts import ArtifactStore
from mgpt.training.async_checkpointer import AsyncCheckpointer
from mgpt.training.callbacks.checkpoint import CheckpointCallback
from mgpt.training.callbacks.early_stopping import EarlyStopping
from mgpt.training.callbacks.memory import MemoryUsage
from mgpt.training.callbacks.metrics_logger import MetricsLogger, Row, curve_csv
from mgpt.training.callbacks.mfu import ModelFlops
from mgpt.training.callbacks.non_finite import NonFiniteCheck, NonFiniteError
from mgpt.training.callbacks.profiler import Profiler
from mgpt.training.callbacks.sample_log import SampleLog
from mgpt.training.checkpoint import TrainingState
from mgpt.training.checkpoint_format import CorruptCheckpointError
from mgpt.training.data_parallel import DataParallel
from mgpt.training.determinism import is_nondeterministic_error, set_determinism
from mgpt.training.flops import StepFlops
from mgpt.training.fsdp import FSDP
from mgpt.training.lr_scheduler import make_lr_scheduler
from mgpt.training.optimizer import make_optimizer
from mgpt.training.prefetch import prefetch, wait_for_first
from mgpt.training.trainer import Trainer
from mgpt.training.types import TOTALS, Callback, StepBatches

_STEPS_AHEAD = 2  # steps unpacked before the trainer needs them


def work(args: WorkerArgs) -> dict[str, Any]:
    """Trains to the end.

    Returns:
        `{"steps"}`; or `{"refused": reason}` if another attempt would end the same; or `{"damaged": reason}` if the
        checkpoint to resume from is damaged.
    """
    _quiet_ray()
    torch.set_num_threads(args.workers.threads)
    device = ray.train.torch.get_device()
    set_determinism(device, args.workers.deterministic)
    try:
        _check_store(args)
        steps = _steps(args, device)  # begin to arrive while the model is built
        trainer = make_trainer(args, device)
        trainer.run(wait_for_first(steps))
    except CorruptCheckpointError as error:
        return {"damaged": str(error)}
    except (ValueError, NonFiniteError) as error:
        return {"refused": str(error)}
    except RuntimeError as error:
        if not is_nondeterministic_error(error):
            raise
        fix = "leave it out, or change what needs that operation"
        return {"refused": f"cluster.training.deterministic: {error}; {fix}"}
    if trainer.parallel.rank == 0:
        _finish(args, trainer)
    return {"steps": trainer.step}


def _quiet_ray() -> None:
    """Silences Ray's remarks on its own progress; the curve shows the training's."""
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_log_once_globally()  # on progress bars, and on tasks that wait for a CPU that the other worker's tasks use


def _check_store(args: WorkerArgs) -> None:
    if not Store(args.run_uri).exists(f"{args.run_uri}/{STARTED}"):
        raise ValueError(
            f"storage.root: {args.run_uri}, written by the driver, is not on node {ray.util.get_node_ip_address()}; "
            "use a folder that all nodes share, or s3://"
        )


def make_trainer(args: WorkerArgs, device: torch.device) -> Trainer:
    """Returns the trainer at the last committed checkpoint, or at step 0."""
    settings = args.settings
    model: Any = args.model.load_model()
    model.train()
    fuse_llama_layers(model.language_model)
    parallel = _parallel(model, args, device)
    trainer = Trainer(
        model,
        make_optimizer(model.trainable_parameters(), settings),
        make_lr_scheduler(settings),
        parallel,
        settings,
        device,
        _callbacks(args, model, parallel, device),
        attention_implementation(model.language_model.config),
        is_preempted=is_preempted,
    )
    checkpoints = CheckpointStore(args.run_uri)
    latest = checkpoints.latest()
    if latest is not None:
        with checkpoints.local(latest) as folder:
            trainer.load(TrainingState.load(folder))
    return trainer


def _callbacks(args: WorkerArgs, model: Any, parallel: DataParallel, device: torch.device) -> list[Callback]:
    settings = args.settings
    gauges = (ModelFlops(StepFlops.of(model)), MemoryUsage())
    curve = MetricsLogger(settings.log_every, lambda rows: _write_curve(args.run_uri, rows), gauges)
    checkpoint = CheckpointCallback(
        settings.checkpoint_every,
        AsyncCheckpointer(lambda state: _save(args, state, parallel.rank), needs_copy=parallel.rank == 0),
        can_read=lambda step: device.type == "cpu" or _is_watched(settings, step),
        after_preemption=lambda: _leave(parallel),
    )
    callbacks: list[Callback] = [NonFiniteCheck(lambda step: _is_watched(settings, step)), curve]
    if settings.early_stop_rows is not None:
        callbacks.append(EarlyStopping(curve, settings.early_stop_rows))
    if args.workers.sample_log:
        callbacks.append(SampleLog())
    callbacks.append(checkpoint)
    if args.workers.profile is not None:
        callbacks.append(Profiler(*args.workers.profile, lambda name, trace: _write_trace(args.run_uri, name, trace)))
    return callbacks


def _parallel(model: Any, args: WorkerArgs, device: torch.device) -> DataParallel:
    """Moves the model, or this worker's shard of it, to the device."""
    if args.workers.parallelism == "fsdp" and ray.train.get_context().get_world_size() > 1:
        image_parts = [part for part in (model.vision_tower, model.qformer) if part is not None]
        bf16, limit = args.settings.precision == "bf16", args.settings.global_batch_size
        return FSDP(model, model.trainable_parameters(), len(TOTALS), image_parts, device, bf16, limit)
    model.to(device)
    return DataParallel(model.trainable_parameters(), len(TOTALS))


def _is_watched(settings: TrainingSettings, step: int) -> bool:
    """Returns whether a step ends with a row of the curve or a checkpoint, neither of which may be non-finite."""
    return step % settings.log_every == 0 or step % settings.checkpoint_every == 0 or step == settings.steps


def _steps(args: WorkerArgs, device: torch.device) -> Iterator[StepBatches]:
    """Returns the steps from the last checkpoint on; on CUDA in pinned memory, from which copies run in parallel."""
    if CheckpointStore(args.run_uri).latest_step() >= args.settings.steps:
        return iter(())

    def steps() -> Iterator[StepBatches]:
        for step, batches in stream(ray.train.get_dataset_shard(DATASET)):
            yield step, [batch.pinned() for batch in batches] if device.type == "cuda" else batches

    return prefetch(steps, _STEPS_AHEAD)


def _save(args: WorkerArgs, state: TrainingState, rank: int) -> None:
    """Commits a checkpoint on worker 0. Runs in a thread, so that storage does not block a step."""
    if rank == 0:
        with tempfile.TemporaryDirectory() as folder:
            state.save(folder)
            CheckpointStore(args.run_uri).upload(Path(folder), state.position, args.settings.keep_checkpoints)


def _leave(parallel: DataParallel) -> None:
    """Ends this process if it received SIGTERM, once worker 0 has committed the checkpoint."""
    parallel.gather(None)
    exit_if_signalled()


def _write_trace(run_uri: str, name: str, trace: bytes) -> None:
    Store(run_uri).write(f"{run_uri}/profile/{name}", trace)


def _write_curve(run_uri: str, rows: list[Row]) -> None:
    Store(run_uri).write(f"{run_uri}/{CURVE}", curve_csv(rows).encode())


def _finish(args: WorkerArgs, trainer: Trainer) -> None:
    """Puts the weights into the artifact store, and writes last the record that the run is finished."""
    store, callbacks = Store(args.run_uri), {type(callback): callback for callback in trainer.callbacks}
    curve, checkpoint, sample_log = callbacks[MetricsLogger], callbacks[CheckpointCallback], callbacks.get(SampleLog)
    assert isinstance(curve, MetricsLogger)
    assert isinstance(checkpoint, CheckpointCallback)
    _write_curve(args.run_uri, curve.rows)
    if isinstance(sample_log, SampleLog):
        store.write(f"{args.run_uri}/{SAMPLE_LOG}", json.dumps(sample_log.entries).encode())
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / WEIGHTS
        trainer.model.save_trainable(folder, args.model.load_processor())  # type: ignore[attr-defined]
        weights = retry_upload(ArtifactStore(Store(args.store_root)).put)(folder)
        sha256 = sha256_file(folder / "trainable.safetensors")
    finished = {"steps": trainer.step, "weights": weights, "sha256": sha256, "stalls": checkpoint.stalls}
    store.write(f"{args.run_uri}/{FINISHED}", json.dumps(finished).encode())
