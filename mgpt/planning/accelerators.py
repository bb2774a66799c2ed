"""What stages run on: memory, peak FLOPs by precision, memory bandwidth and price of one accelerator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mgpt.training.types import PEAK_FLOPS

_GIBI = 1 << 30
_SIDE = 1024  # of the matrices that measure a CPU


@dataclass(frozen=True)
class Accelerator:
    """`memory` in bytes; `flops` a second by precision, dense; `bandwidth` in bytes a second; `price` in dollars an hour; `reserve` is
    what its runtime takes before a tensor is there, in bytes, and `slack` the share that a caching allocator leaves unusable."""

    name: str
    memory: int
    flops: dict[str, float]
    bandwidth: float
    price: float
    reserve: int
    slack: float


# Memory and bandwidth: NVIDIA's data sheets, SXM form. Prices are round figures of on-demand offers of 2025, our choice: give your own with
# --price. Reserve and slack are our estimates of a CUDA context with NCCL and of fragmentation; they were not measured here.
KINDS = {
    "a100-80": Accelerator("a100-80", 80 * _GIBI, PEAK_FLOPS["A100"], 2.04e12, 2.0, 2 * _GIBI, 0.05),
    "a100-40": Accelerator("a100-40", 40 * _GIBI, PEAK_FLOPS["A100"], 1.56e12, 1.5, 2 * _GIBI, 0.05),
    "h100": Accelerator("h100", 80 * _GIBI, PEAK_FLOPS["H100"], 3.35e12, 3.0, 2 * _GIBI, 0.05),
}


def accelerator(name: str, price: float | None = None) -> Accelerator:
    """A kind by its name; `cpu` is measured now. Raises ValueError for another name."""
    if name != "cpu" and name not in KINDS:
        raise ValueError(f"--gpu: {name!r} is unknown; choose one of cpu, {', '.join(KINDS)}")
    found = measured_cpu() if name == "cpu" else KINDS[name]
    return found if price is None else Accelerator(**{**found.__dict__, "price": price})


def measured_cpu() -> Accelerator:
    """One worker of this machine: its memory, and the float32 FLOPs of one thread on a matrix product, the best of three.

    Seconds are the process's own, over all its threads: neither other work nor the number of threads changes the figure much.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_SIDE, _SIDE), dtype=np.float32) for _ in range(2))
    flops = 2 * _SIDE**3 / min(_seconds(lambda: left @ right) for _ in range(3))
    bandwidth = 2 * left.nbytes / min(_seconds(left.copy) for _ in range(3))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Accelerator("cpu", memory, dict.fromkeys(("fp32", "bf16", "fp16"), flops), bandwidth, 0.0, 0, 0.0)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return max(1e-9, time.process_time() - begun)
