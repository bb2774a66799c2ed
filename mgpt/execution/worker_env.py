"""Variables of Ray Train's workers, for tasks that run in the same processes.

Ray runs a task in a process that an earlier one left only if both have the same variables. A process that has imported
the model's code for one training then prepares the data of the next.
"""

from __future__ import annotations

import os

from mgpt.config.training import WorkerSettings


def worker_environment(workers: WorkerSettings) -> dict[str, str]:
    """Returns the variables of Ray Train's workers; sets defaults in this process unless they are set."""
    gpus = "1" if workers.gpus_per_worker else "0"
    defaults = {
        # Interval of the controller's poll, which notices the end of a training. Ray's default is 2 s.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # One more process each, needed only where nodes are preempted and NCCL can hang.
        "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": gpus,
        "RAY_TRAIN_NCCL_RAS_ACTION": "fail",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if workers.gpus_per_worker or workers.maximum_workers else "0",
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # set by Ray Train itself
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_") or name in defaults}
