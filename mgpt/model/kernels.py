"""Fused kernels for CUDA: Liger's, where the package is installed (`pip install mgpt[gpu]`)."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

from torch import Tensor


def fused(tensor: Tensor) -> Any:
    """The module of fused autograd functions for this tensor's device; None where there are none."""
    return _liger() if tensor.is_cuda else None


@cache
def _liger() -> Any:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel import ops  # needs Triton, which comes with torch for CUDA

    return ops
