"""What runs in a Ray Train worker: builds the model, goes on from the checkpoint, and gives the loop its stream and callbacks."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.v2._internal.execution import context

from mgpt.config.training import TrainingSettings
from mgpt.execution.checkpoints import retried
from mgpt.execution.data_feed import NAME, stream
from mgpt.execution.preemption import obey, told
from mgpt.execution.train import CURVE, FINISHED, LEDGER, WEIGHTS, Work
from mgpt.models.compat import attention_implementation
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.storage import Store, sha256_file
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

_STEPS_AHEAD = 2  # steps that are unpacked before the loop asks for them


def work(todo: Work) -> dict[str, Any]:
    """Trains. Returns `{"steps"}`, or `{"refused"}` with the reason when another try would end the same way, or `{"damaged"}` when the
    checkpoint to go on from is."""
    for name in ("ray.train", "ray.data", context.__file__):  # Ray 2.60 names the logger of reports after its file
        logging.getLogger(name).setLevel(logging.WARNING)  # the curve tells what goes on
    torch.set_num_threads(todo.workers.threads)
    device = ray.train.torch.get_device()
    set_determinism(device, todo.workers.deterministic)
    try:
        steps = _steps(todo, device)
        loop = make_loop(todo)
        loop.run(wait_for_first(steps))
    except CorruptCheckpointError as error:
        return {"damaged": str(error)}
    except (ValueError, NonFiniteError) as error:
        return {"refused": str(error)}
    except RuntimeError as error:
        if not is_nondeterministic_error(error):
            raise
        return {
            "refused": f"cluster.training.deterministic: {error}; leave it out, or change what needs that operation"
        }
    if loop.parallel.rank == 0:
        _finish(todo, loop)
    return {"steps": loop.step}


def make_loop(todo: Work) -> Trainer:
    """The loop at the last committed checkpoint, or at its beginning."""
    settings, device = todo.settings, ray.train.torch.get_device()
    model: Any = todo.start.load_model()
    model.train()
    fuse_llama_layers(model.language_model)
    parallel = _parallel(model, todo, device)
    parameters = model.trainable_parameters()
    gauges = (ModelFlops(StepFlops.of(model)), MemoryUsage())
    curve = MetricsLogger(settings.log_every, lambda rows: _write_curve(todo.run_uri, rows), gauges)
    checkpoint = CheckpointCallback(
        settings.checkpoint_every,
        AsyncCheckpointer(report, needs_copy=parallel.rank == 0),
        can_read=lambda step: device.type == "cpu" or _is_watched(settings, step),
        after_preemption=obey,
    )
    callbacks: list[Callback] = [NonFiniteCheck(lambda step: _is_watched(settings, step)), curve, checkpoint]
    if todo.workers.sample_log:
        callbacks.insert(2, SampleLog())
    if settings.early_stop_rows is not None:
        callbacks.insert(2, EarlyStopping(curve, settings.early_stop_rows))
    if todo.workers.profile is not None:
        callbacks.append(Profiler(*todo.workers.profile, lambda name, trace: _write_trace(todo.run_uri, name, trace)))
    optimiser, attention = make_optimizer(parameters, settings), attention_implementation(model.language_model.config)
    loop = Trainer(
        model,
        optimiser,
        make_lr_scheduler(settings),
        parallel,
        settings,
        device,
        callbacks,
        attention,
        is_preempted=told,
    )
    kept = ray.train.get_checkpoint()
    if kept is not None:
        with kept.as_directory() as folder:
            loop.load(TrainingState.load(folder))
    return loop


def _parallel(model: Any, todo: Work, device: torch.device) -> DataParallel:
    """Moves the model to the device, whole or this worker's share of it."""
    parameters = model.trainable_parameters()
    if todo.workers.parallelism == "fsdp" and ray.train.get_context().get_world_size() > 1:
        image_parts = [part for part in (model.vision_tower, model.qformer) if part is not None]
        bf16, limit = todo.settings.precision == "bf16", todo.settings.global_batch_size
        return FSDP(model, parameters, len(TOTALS), image_parts, device, bf16, limit)
    model.to(device)
    return DataParallel(model.trainable_parameters(), len(TOTALS))


def _is_watched(settings: TrainingSettings, step: int) -> bool:
    """Before every row of the curve and every checkpoint: a damaged state is neither shown nor kept."""
    return step % settings.log_every == 0 or step % settings.checkpoint_every == 0 or step == settings.steps


def _steps(todo: Work, device: torch.device) -> Iterator[StepBatches]:
    """The stream, which begins to flow while the model is being built."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None and checkpoint.get_metadata()["step"] >= todo.settings.steps:
        return iter(())
    return prefetch(lambda: _on_host(stream(ray.train.get_dataset_shard(NAME)), device), _STEPS_AHEAD)


def _on_host(steps: Iterator[StepBatches], device: torch.device) -> Iterator[StepBatches]:
    """The same steps, in memory from which a CUDA device copies while the process goes on."""
    for step, batches in steps:
        yield step, [batch.pinned() for batch in batches] if device.type == "cuda" else batches


def _write_trace(run_uri: str, name: str, trace: bytes) -> None:
    Store(run_uri).write(f"{run_uri}/profile/{name}", trace)


def _write_curve(run_uri: str, rows: list[Row]) -> None:
    Store(run_uri).write(f"{run_uri}/{CURVE}", curve_csv(rows).encode())


def report(state: TrainingState) -> None:
    """Hands a checkpoint to Ray Train; worker 0 writes it, all take part. Each has a folder of its own, so that a retry never mixes with
    leftovers. Runs beside training, so that neither storage nor Ray's look at its workers holds up a step."""
    metrics = {"step": state.position}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        checkpoint.set_metadata({"step": state.position})
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=_upload)


def _upload(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    storage = ray.train.get_context().get_storage()
    return retried(lambda: storage.persist_current_checkpoint(checkpoint, name), "checkpoint")


def _finish(todo: Work, loop: Trainer) -> None:
    """Writes the weights, and last the file that says the run is finished."""
    store = Store(todo.run_uri)
    curve = next(callback for callback in loop.callbacks if isinstance(callback, MetricsLogger))
    ledger = next((callback.entries for callback in loop.callbacks if isinstance(callback, SampleLog)), None)
    stalls = next(callback.stalls for callback in loop.callbacks if isinstance(callback, CheckpointCallback))
    _write_curve(todo.run_uri, curve.rows)
    if ledger is not None:
        store.write(f"{todo.run_uri}/{LEDGER}", json.dumps(ledger).encode())
    with tempfile.TemporaryDirectory() as folder:
        loop.model.save_trainable(folder, todo.start.load_processor())  # type: ignore[attr-defined]
        store.delete(f"{todo.run_uri}/{WEIGHTS}")
        store.put_folder(folder, f"{todo.run_uri}/{WEIGHTS}")
        digest = sha256_file(Path(folder) / "trainable.safetensors")
    store.write(
        f"{todo.run_uri}/{FINISHED}", json.dumps({"steps": loop.step, "sha256": digest, "stalls": stalls}).encode()
    )
