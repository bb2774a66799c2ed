"""Preemption of a training worker: a SIGTERM to its process, or the notification that its node will be taken away.

Training then commits a checkpoint at the next step, and no step is lost. A worker that received the signal ends by
itself once that checkpoint is committed; one whose node is preempted trains on until the node is gone.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from mgpt.execution.compat import node_is_preempted

_SIGNALLED = threading.Event()


def is_preempted() -> bool:
    """Returns whether this worker will be stopped. Costs no communication."""
    return _SIGNALLED.is_set() or node_is_preempted()


def exit_if_signalled() -> None:
    """Ends this process if it received SIGTERM. Ray then restarts the workers from the last checkpoint."""
    if _SIGNALLED.is_set():
        os._exit(128 + signal.SIGTERM)


def install_handler() -> None:
    """Makes the first SIGTERM a request to checkpoint; the second ends the process. For a process's main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(*_: Any) -> None:
        _SIGNALLED.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, handle)


class SignalBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray names the class through the config alone
    """Ray's process group of torch, in workers that handle SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Installs the handler in each worker's main thread; training runs in another, which receives no signals."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(install_handler)


@dataclass
class SignalTorchConfig(TorchConfig):
    """Selects `SignalBackend`."""

    @property
    def backend_cls(self) -> type[SignalBackend]:
        return SignalBackend
