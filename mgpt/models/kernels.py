"""Fused kernels for CUDA: Liger's, where the package is installed (`pip install mgpt[gpu]`)."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from torch import Tensor


def fused(tensor: Tensor) -> Any:
    """The module of fused autograd functions for this tensor's device; None where there are none."""
    return _liger() if tensor.is_cuda else None


@cache
def _liger() -> Any:
    try:
        from liger_kernel import ops  # needs Triton, which comes with torch for CUDA
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "training runs without fused kernels (%s); install them with pip install mgpt[gpu]", error
        )
        return None
    return ops
