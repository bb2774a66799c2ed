"""Deterministic torch operations, for runs that repeat bit for bit."""

from __future__ import annotations

import os

import torch


def set_determinism(device: torch.device, requested: bool) -> None:
    """Makes this process's operations deterministic: always on a CPU, where it costs nothing, on CUDA if requested.

    On CUDA an operation without a deterministic form raises RuntimeError, see `is_nondeterministic_error`. Call this
    before
    the device computes anything: cuBLAS reads its environment variable when it starts.
    """
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    elif requested:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def is_nondeterministic_error(error: RuntimeError) -> bool:
    """Returns whether torch refused an operation that has no deterministic form, so that a retry would fail too."""
    return "use_deterministic_algorithms" in str(error)  # torch has no error class for it
