"""Devices that stages can be planned for: memory, peak FLOP/s by precision, memory bandwidth and price."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mgpt.training.types import PEAK_FLOPS

_GIBI = 1 << 30
_SIDE = 1024  # of the square matrices that a CPU is measured with


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        memory: bytes.
        flops: dense FLOP/s by precision.
        bandwidth: of its memory, bytes per second.
        price: dollars per hour.
        reserve: bytes that its runtime takes before the first tensor.
        slack: share of memory that a caching allocator leaves unusable.
    """

    name: str
    memory: int
    flops: dict[str, float]
    bandwidth: float
    price: float
    reserve: int
    slack: float


# Memory and bandwidth: NVIDIA's data sheets, SXM form. Prices: rounded on-demand offers of 2025; override with
# --price. Reserve and slack: estimates of a CUDA context with NCCL and of fragmentation, not measured.
ACCELERATORS = {
    "a100-80": Accelerator("a100-80", 80 * _GIBI, PEAK_FLOPS["A100"], 2.04e12, 2.0, 2 * _GIBI, 0.05),
    "a100-40": Accelerator("a100-40", 40 * _GIBI, PEAK_FLOPS["A100"], 1.56e12, 1.5, 2 * _GIBI, 0.05),
    "h100": Accelerator("h100", 80 * _GIBI, PEAK_FLOPS["H100"], 3.35e12, 3.0, 2 * _GIBI, 0.05),
}


def get_accelerator(name: str, price: float | None = None) -> Accelerator:
    """Returns a device by name, with another price if one is given; `cpu` is measured now.

    Raises:
        ValueError: the name is unknown.
    """
    if name != "cpu" and name not in ACCELERATORS:
        raise ValueError(f"--gpu: {name!r} is unknown; choose one of cpu, {', '.join(ACCELERATORS)}")
    device = measure_cpu() if name == "cpu" else ACCELERATORS[name]
    return device if price is None else replace(device, price=price)


def measure_cpu() -> Accelerator:
    """Measures one worker of this machine: its memory, and float32 FLOP/s and bandwidth of one thread (best of three).

    Time is the process's CPU time over all threads, so neither other load nor the number of threads changes the
    result much.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_SIDE, _SIDE), dtype=np.float32) for _ in range(2))
    flops = 2 * _SIDE**3 / min(_seconds(lambda: left @ right) for _ in range(3))
    bandwidth = 2 * left.nbytes / min(_seconds(left.copy) for _ in range(3))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Accelerator("cpu", memory, dict.fromkeys(("fp32", "bf16", "fp16"), flops), bandwidth, 0.0, 0, 0.0)


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return max(1e-9, time.process_time() - start)
