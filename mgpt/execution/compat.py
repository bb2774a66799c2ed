"""All undocumented names of Ray that mgpt uses, each with the reason, tested with one version of Ray.

`tests/integration/execution/test_compat.py` fails when one of them changes; its messages say what to do.
"""

from __future__ import annotations

import time
from typing import Any

import ray
import ray.train

RAY_TESTED = "2.60"
POLL_PAUSE_SECONDS = 0.02


def check_version(installed: str = ray.__version__) -> None:
    """Raises RuntimeError for a Ray other than the tested minor version."""
    if installed.split(".")[:2] != RAY_TESTED.split("."):
        raise RuntimeError(
            f"ray {installed} is installed, but mgpt.execution.compat was tested with {RAY_TESTED}; install that "
            "version, or run tests/integration/execution/test_compat.py with the new one and raise RAY_TESTED"
        )


class PollThrottle:
    """Pauses each iteration of the scheduling loop of a Ray Data dataset.

    That loop is a thread of the training worker. While enough batches are prefetched no task runs, and Ray (2.60) then
    iterates without a pause: it competed with the training thread for the interpreter and made steps three times as
    long. No setting of `DataContext` slows it down; its list of execution callbacks is public, their base class is not,
    so this class repeats the base's four methods.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(POLL_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def node_is_preempted() -> bool:
    """Returns whether this training worker's group was notified that one of its nodes will be preempted.

    The public `ray.train.get_preemption_info` is a barrier of all workers, too slow for every step. This reads the
    notification that it would combine.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
