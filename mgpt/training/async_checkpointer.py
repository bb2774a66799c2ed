"""Keeps checkpoints while training goes on: a step waits for the copy to host memory, not for storage."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from mgpt.training.checkpoint import TrainingState


class Keeper:
    """Gives states to `keep` in a thread of its own, one after the other.

    Args:
        keep: writes a state to storage; called on every worker at the same steps, so that it may meet with the others.
        writes: whether this worker's `keep` reads the state; where not, nothing is copied.
    """

    def __init__(self, keep: Callable[[TrainingState], None], writes: bool = True) -> None:
        self._keep, self._writes = keep, writes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainingState) -> None:
        """Returns when the state is copied. Waits first for the one before, so that there is one copy at most; raises what that met."""
        self.wait()
        copy = state.on_host() if self._writes else state
        self._pending = self._thread.submit(self._keep, copy)

    def wait(self) -> None:
        """Returns when what was saved last is kept. Raises what `keep` raised."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
