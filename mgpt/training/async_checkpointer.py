"""Writes checkpoints in the background: a step waits for the copy to host memory, not for storage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from mgpt.training.checkpoint import TrainingState


class AsyncCheckpointer:
    """Passes states to `write` in a thread of its own, one after the other.

    Args:
        write: stores a state. It is called on every worker at the same steps, so it may synchronise them.
        needs_copy: whether this worker's `write` reads the state; if not, nothing is copied.
    """

    def __init__(self, write: Callable[[TrainingState], None], needs_copy: bool = True) -> None:
        self._write, self._needs_copy = write, needs_copy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainingState) -> None:
        """Copies the state and returns.

        Waits for the previous one first, so that there is at most one copy; raises its error.
        """
        self.wait()
        copy = state.on_host() if self._needs_copy else state
        self._pending = self._thread.submit(self._write, copy)

    def wait(self) -> None:
        """Waits until the last state is written. Raises what `write` raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
