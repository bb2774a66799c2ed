"""The same bits again: what torch needs for it."""

from __future__ import annotations

import os

import torch


def be_deterministic(device: torch.device, asked: bool) -> None:
    """Makes the operations of this process deterministic: on a CPU, where that costs nothing, always; on CUDA where it is asked for.

    There an operation without a deterministic form raises RuntimeError, which `is_indeterminate` knows. Call it before the device computes
    anything: cuBLAS reads its variable when it starts.
    """
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    elif asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def is_indeterminate(error: RuntimeError) -> bool:
    """Whether torch refused an operation because it has no deterministic form: another try would end the same way."""
    return "use_deterministic_algorithms" in str(error)
