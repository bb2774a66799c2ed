"""The training stream: the sample at each position as a pure function of seed, weights, sizes and step.

Positions are divided into blocks. A block holds each dataset in exact proportion, evenly spaced with jitter, so that
any prefix of the stream deviates from the declared shares by a few samples only. Each epoch of a dataset is a
permutation that is evaluated per index (a Feistel network): any step is found in constant time, even with 10^8 rows,
and no row repeats within an epoch.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 1 << 16  # positions; shares are exact to half of 1 / BLOCK
ROUNDS = 4
MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SampleRef:
    """The sample at a position of the stream.

    Attributes:
        dataset: name of the dataset.
        index: row of the dataset, its shards in manifest order.
        epoch: pass over the dataset, counted from 0.
        position: samples before this one in the stream.
    """

    dataset: str
    index: int
    epoch: int
    position: int


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def sample_rng(seed: int, position: int) -> random.Random:
    """Returns the generator that draws instruction and alternatives for the sample at a position."""
    return random.Random(_seed("render", seed, position))


class Permutation:
    """A seeded permutation of `range(size)`, each value computed in constant time and memory.

    A Feistel network permutes the smallest range of 4^n values that holds `size`; it is applied repeatedly until the
    value is inside `range(size)` (cycle walking).
    """

    def __init__(self, size: int, *key: object) -> None:
        self.size = size
        self.half = max(1, math.ceil((size - 1).bit_length() / 2))
        self.mask = (1 << self.half) - 1
        self.keys = [_seed("round", number, *key) for number in range(ROUNDS)]

    def __getitem__(self, index: int) -> int:
        """Returns the value at an index.

        Raises:
            IndexError: the index is not in `range(size)`.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is out of range for a permutation of {self.size}")
        value = self._permute(index)
        while value >= self.size:
            value = self._permute(value)
        return value

    def values(self, indices: np.ndarray) -> np.ndarray:
        """Returns the values at many indices, (n,) int64: what `[]` gives for each."""
        values = self._permute_all(indices.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._permute_all(values[outside])
        return values.astype(np.int64)

    def _permute_all(self, values: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self.half), np.uint64(self.mask)
        left, right = values >> half, values & mask
        for key in self.keys:
            left, right = right, left ^ (_mix_all(right ^ np.uint64(key)) & mask)
        return left << half | right

    def _permute(self, value: int) -> int:
        left, right = value >> self.half, value & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mix(right ^ key) & self.mask)
        return left << self.half | right


def _mix(value: int) -> int:
    """Applies the finalizer of splitmix64, in which each input bit changes half of the output bits on average."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def _mix_all(values: np.ndarray) -> np.ndarray:
    """Applies `_mix` to (n,) uint64; products wrap around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Mixture:
    """A deterministic stream over datasets.

    Args:
        seed: seed of the stream.
        weights: relative share of samples of each dataset; a weight of 0 excludes the dataset.
        sizes: rows of each dataset.
        global_batch_size: samples per step over all workers.

    Raises:
        ValueError: a weight is negative or not finite, all are 0, a weighted dataset has no rows or no size, or the
            batch is empty. The message lists all errors.
    """

    def __init__(
        self, seed: int, weights: Mapping[str, float], sizes: Mapping[str, int], global_batch_size: int
    ) -> None:
        _validate(weights, sizes, global_batch_size)
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.datasets = sorted(name for name, weight in weights.items() if weight > 0)
        self.sizes = {name: int(sizes[name]) for name in self.datasets}
        total = math.fsum(weights[name] for name in self.datasets)
        self.shares = {name: weights[name] / total for name in self.datasets}
        self._quota = _apportion([self.shares[name] for name in self.datasets], BLOCK)

    def batch(self, step: int) -> list[SampleRef]:
        """Returns the samples of a step (counted from 0) over all workers; each worker takes a slice."""
        first = step * self.global_batch_size
        return [self.sample_ref(position) for position in range(first, first + self.global_batch_size)]

    def sample_ref(self, position: int) -> SampleRef:
        """Returns the sample at a position of the stream."""
        block, offset = divmod(position, BLOCK)
        order, rank = _arrange_block(self.seed, self._quota, block)
        number = int(order[offset])
        name = self.datasets[number]
        epoch, index = divmod(block * self._quota[number] + int(rank[offset]), self.sizes[name])
        return SampleRef(name, _permutation(self.sizes[name], self.seed, name, epoch)[index], epoch, position)

    def counts(self, steps: int) -> dict[str, int]:
        """Returns the number of samples of each dataset in the first `steps` steps."""
        blocks, rest = divmod(steps * self.global_batch_size, BLOCK)
        partial = np.bincount(_arrange_block(self.seed, self._quota, blocks)[0][:rest], minlength=len(self.datasets))
        return {name: blocks * self._quota[number] + int(partial[number]) for number, name in enumerate(self.datasets)}

    def draw_counts(self, steps: int) -> dict[str, np.ndarray]:
        """Returns how often the first `steps` steps use each row: dataset -> (rows,) int32."""
        draws = {}
        for name, count in self.counts(steps).items():
            epochs, rest = divmod(count, self.sizes[name])
            draws[name] = np.full(self.sizes[name], epochs, np.int32)
            order = _permutation(self.sizes[name], self.seed, name, epochs)
            draws[name][order.values(np.arange(rest))] += 1
        return draws

    def realized_shares(self, steps: int) -> dict[str, float]:
        """Returns the actual share of each dataset in the first `steps` steps; `shares` holds the declared ones."""
        counts = self.counts(steps)
        return {name: count / max(1, steps * self.global_batch_size) for name, count in counts.items()}


@lru_cache(maxsize=8)
def _arrange_block(seed: int, quota: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the dataset number at each position of a block, and its rank among the block's samples of that
    dataset.
    """
    numbers = np.repeat(np.arange(len(quota)), quota)
    ranks = np.concatenate([np.arange(count) for count in quota])
    # The j-th of n samples lies at a random point in the j-th of n equal parts of the block.
    jitter = np.random.Generator(np.random.PCG64(_seed("block", seed, block))).random(BLOCK)
    order = np.argsort((ranks + jitter) / np.asarray(quota)[numbers], kind="stable")
    return numbers[order], ranks[order]


@lru_cache(maxsize=256)
def _permutation(size: int, seed: int, name: str, epoch: int) -> Permutation:
    return Permutation(size, seed, name, epoch)


def _validate(weights: Mapping[str, float], sizes: Mapping[str, int], global_batch_size: int) -> None:
    errors = [
        f"weight of {name} is {weight}; give a number >= 0"
        for name, weight in weights.items()
        if not 0 <= weight < math.inf
    ]
    used = [name for name, weight in weights.items() if weight > 0]
    empty = [name for name in used if sizes.get(name, 0) < 1]
    errors += [
        f"{name} has a weight but {sizes.get(name, 'no known number of')} rows; curate it or remove it from the mixture"
        for name in empty
    ]
    if not used:
        errors.append("no dataset has a weight above 0")
    if global_batch_size < 1:
        errors.append(f"global_batch_size is {global_batch_size}; give at least 1")
    if len(used) > BLOCK:
        errors.append(f"{len(used)} datasets; at most {BLOCK} can be mixed")
    if errors:
        raise ValueError("mixture: " + "; ".join(errors))


def _apportion(shares: list[float], total: int) -> tuple[int, ...]:
    """Returns integers proportional to the shares that sum to `total` (largest remainder method), each at least 1."""
    counts = [max(1, math.floor(share * total)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: (counts[number] - shares[number] * total, number))
    for number in by_remainder[: max(0, total - sum(counts))]:
        counts[number] += 1
    counts[counts.index(max(counts))] -= sum(counts) - total
    return tuple(counts)


def balanced_weights(tasks: Mapping[str, str]) -> dict[str, float]:
    """Returns weights that give every task the same share, divided evenly among its datasets.

    The paper balances its second stage over tasks without giving ratios; equal shares are our choice.

    Args:
        tasks: the task of each dataset.
    """
    members = {task: [name for name, other in tasks.items() if other == task] for task in tasks.values()}
    return {name: 1 / len(members) / len(members[task]) for name, task in tasks.items()}
