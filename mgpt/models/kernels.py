"""Fused CUDA kernels: Liger's, where the package is installed (`pip install mgpt[gpu]`)."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from torch import Tensor


def fused_ops(tensor: Tensor) -> Any:
    """Returns the module of fused autograd functions for a tensor's device, or None."""
    return liger_ops() if tensor.is_cuda else None


@cache
def liger_ops() -> Any:
    """Returns Liger's autograd functions, or None with a warning where the package is not installed."""
    try:
        from liger_kernel import ops  # needs Triton, which comes with torch for CUDA
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "training runs without fused kernels (%s); install them with pip install mgpt[gpu]", error
        )
        return None
    return ops
