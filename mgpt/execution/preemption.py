"""The word that a worker will be stopped: a signal to its process, or the news that its node will be taken back.

Training then keeps a checkpoint at the next step, and no step is lost. A worker that got the signal ends by itself when the checkpoint
counts; one whose node is taken back works on until that happens.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.context import get_train_context

_SIGNALLED = threading.Event()


def told() -> bool:
    """Whether this worker was told that it will be stopped. Asks nobody: Ray's own `get_preemption_info` is a meeting of all workers."""
    return _SIGNALLED.is_set() or get_train_context().preemption_context.preemption_info is not None


def obey() -> None:
    """Ends this process if a signal asked for it, as soon as the last checkpoint counts. Ray then starts the workers anew from there."""
    if _SIGNALLED.is_set():
        ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
        os._exit(128 + signal.SIGTERM)


def listen() -> None:
    """From now on the first SIGTERM is a notice; the second ends the process at once. For a process's main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def notice(*_: Any) -> None:
        _SIGNALLED.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, notice)


class _ListeningBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Runs in each worker's main thread; training runs in another, where no signal can be caught."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(listen)


@dataclass
class ListeningTorch(TorchConfig):
    """Ray's process group of torch, in workers that listen for a notice."""

    @property
    def backend_cls(self) -> type[_ListeningBackend]:
        return _ListeningBackend
