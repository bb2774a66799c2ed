"""Processes that serve a training one after another, instead of each importing the model's code and loading what feeding needs anew."""

from __future__ import annotations

import os
from typing import Any

from mgpt.config.training import WorkerSettings


def set_up_ray_train(workers: WorkerSettings) -> dict[str, Any]:
    """Sets what Ray Train takes from this process's environment, where it is not set, and returns the options of a task beside it.

    Ray runs a task in a process that an earlier one left only if both have the same variables, written the same way (2.60 writes those of
    a job and those of a task differently). With these options a task has those of Ray Train's workers, so what it imported serves their
    feeding too.
    """
    from ray.train.v2._internal.constants import (
        DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
        get_env_vars_to_propagate,
    )

    gpus = "1" if workers.gpus_per_worker else "0"
    for name, value in {
        # The controller's look at its workers, for which each report waits: the default of 2 s is many steps of a small model.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # One process more each; they matter where nodes are taken back and NCCL can hang. A hang that lasts is a failure, not a remark.
        "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": gpus,
        "RAY_TRAIN_NCCL_RAS_ACTION": "fail",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if workers.gpus_per_worker or workers.maximum_workers else "0",
    }.items():
        os.environ.setdefault(name, value)
    own = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE}
    return {"runtime_env": {"env_vars": own | get_env_vars_to_propagate()}}
