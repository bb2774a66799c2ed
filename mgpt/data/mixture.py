"""The training stream: which sample stands at which position, as a pure function of seed, weights, sizes and step.

Positions are cut into blocks. A block holds every dataset in exact proportion, spread evenly and then jittered, so that after any number
of samples each dataset's count is within a few of its declared share. Each dataset is walked through one permutation an epoch, computed
in place (a Feistel network), so that any step of a stream over a hundred million records is found without walking there, and nothing
repeats before everything was seen.
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
    """One place of the stream: row `index` of `dataset` (its shards in manifest order), on its `epoch`-th pass; `position` counts
    samples from 0."""

    dataset: str
    index: int
    epoch: int
    position: int


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def sample_rng(seed: int, position: int) -> random.Random:
    """The generator that renders the pick at a position: its instruction and alternatives, whatever worker renders it."""
    return random.Random(_seed("render", seed, position))


class Permutation:
    """A seeded permutation of `range(size)`, each value found in constant time and memory.

    A Feistel network permutes the smallest even power of two that holds `size`; values beyond it are walked on until they fall inside.
    """

    def __init__(self, size: int, *key: object) -> None:
        self.size = size
        self.half = max(1, math.ceil((size - 1).bit_length() / 2))
        self.mask = (1 << self.half) - 1
        self.keys = [_seed("round", number, *key) for number in range(ROUNDS)]

    def __getitem__(self, place: int) -> int:
        """The value at a place.

        Raises:
            IndexError: the place is not in `range(size)`.
        """
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of a permutation of {self.size}")
        value = self._encrypted(place)
        while value >= self.size:
            value = self._encrypted(value)
        return value

    def _encrypted(self, value: int) -> int:
        left, right = value >> self.half, value & self.mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right ^ key) & self.mask)
        return left << self.half | right


def _mixed(value: int) -> int:
    """The finaliser of splitmix64: every input bit changes half of the output bits."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


class Mixture:
    """A deterministic stream over datasets.

    Args:
        seed: of the whole stream.
        weights: relative share of samples of each dataset; only their proportions count. A weight of 0 leaves the dataset out.
        sizes: rows of each dataset.
        global_batch_size: samples of a step, over all workers.

    Raises:
        ValueError: a weight is negative or not finite, all are 0, a weighted dataset has no rows or no size, or the batch is empty; all
            at once.
    """

    def __init__(
        self, seed: int, weights: Mapping[str, float], sizes: Mapping[str, int], global_batch_size: int
    ) -> None:
        _check(weights, sizes, global_batch_size)
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.datasets = sorted(name for name, weight in weights.items() if weight > 0)
        self.sizes = {name: int(sizes[name]) for name in self.datasets}
        total = math.fsum(weights[name] for name in self.datasets)
        self.shares = {name: weights[name] / total for name in self.datasets}
        self._quota = _apportioned([self.shares[name] for name in self.datasets], BLOCK)

    def batch(self, step: int) -> list[SampleRef]:
        """The picks of a step (counted from 0). Worker `rank` of `world` takes any fixed slice of them: the batch does not know about
        workers."""
        first = step * self.global_batch_size
        return [self.sample_ref(position) for position in range(first, first + self.global_batch_size)]

    def sample_ref(self, position: int) -> SampleRef:
        """The pick at a position of the stream."""
        block, place = divmod(position, BLOCK)
        order, rank = _arranged(self.seed, self._quota, block)
        number = int(order[place])
        name = self.datasets[number]
        epoch, inside = divmod(block * self._quota[number] + int(rank[place]), self.sizes[name])
        return SampleRef(name, _permuted(self.sizes[name], self.seed, name, epoch)[inside], epoch, position)

    def counts(self, steps: int) -> dict[str, int]:
        """Samples of each dataset in the first `steps` steps."""
        blocks, rest = divmod(steps * self.global_batch_size, BLOCK)
        partial = np.bincount(_arranged(self.seed, self._quota, blocks)[0][:rest], minlength=len(self.datasets))
        return {name: blocks * self._quota[number] + int(partial[number]) for number, name in enumerate(self.datasets)}

    def draw_counts(self, steps: int) -> dict[str, np.ndarray]:
        """How often the first `steps` steps pick each row: dataset -> (rows,) int32."""
        return {name: self._times(name, count) for name, count in self.counts(steps).items()}

    def _times(self, name: str, count: int) -> np.ndarray:
        epochs, rest = divmod(count, self.sizes[name])
        times = np.full(self.sizes[name], epochs, np.int32)
        order = _permuted(self.sizes[name], self.seed, name, epochs)
        times[[order[place] for place in range(rest)]] += 1
        return times

    def realized_shares(self, steps: int) -> dict[str, float]:
        """Share of each dataset in the first `steps` steps, to be set beside `shares`, the declared ones."""
        counts = self.counts(steps)
        return {name: count / max(1, steps * self.global_batch_size) for name, count in counts.items()}


@lru_cache(maxsize=8)
def _arranged(seed: int, quota: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """Dataset number at each place of a block, and how many of that dataset stand before it in the block."""
    numbers = np.repeat(np.arange(len(quota)), quota)
    ranks = np.concatenate([np.arange(count) for count in quota])
    # The j-th of n samples lands at a random point of the j-th n-th of the block: even spacing, unpredictable order.
    jitter = np.random.Generator(np.random.PCG64(_seed("block", seed, block))).random(BLOCK)
    order = np.argsort((ranks + jitter) / np.asarray(quota)[numbers], kind="stable")
    return numbers[order], ranks[order]


@lru_cache(maxsize=256)
def _permuted(size: int, seed: int, name: str, epoch: int) -> Permutation:
    return Permutation(size, seed, name, epoch)


def _check(weights: Mapping[str, float], sizes: Mapping[str, int], global_batch_size: int) -> None:
    mistakes = [
        f"weight of {name} is {weight}; give a number >= 0"
        for name, weight in weights.items()
        if not 0 <= weight < math.inf
    ]
    used = [name for name, weight in weights.items() if weight > 0]
    empty = [name for name in used if sizes.get(name, 0) < 1]
    mistakes += [
        f"{name} has a weight but {sizes.get(name, 'no known number of')} rows; curate it or leave it out"
        for name in empty
    ]
    if not used:
        mistakes.append("no dataset has a weight above 0")
    if global_batch_size < 1:
        mistakes.append(f"global_batch_size is {global_batch_size}; give at least 1")
    if len(used) > BLOCK:
        mistakes.append(f"{len(used)} datasets; at most {BLOCK} can be mixed")
    if mistakes:
        raise ValueError("mixture: " + "; ".join(mistakes))


def _apportioned(shares: list[float], total: int) -> tuple[int, ...]:
    """Whole numbers in proportion to the shares that sum to the total, by largest remainder; none is 0."""
    counts = [max(1, math.floor(share * total)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: (counts[number] - shares[number] * total, number))
    for number in by_remainder[: max(0, total - sum(counts))]:
        counts[number] += 1
    counts[counts.index(max(counts))] -= sum(counts) - total
    return tuple(counts)


def balanced_weights(tasks: Mapping[str, str]) -> dict[str, float]:
    """Weights that give every task the same share, split evenly over its datasets.

    Args:
        tasks: the task of each dataset.

    The published method balances its second stage over tasks but prints no ratios; even shares are our choice.
    """
    members = {task: [name for name, other in tasks.items() if other == task] for task in tasks.values()}
    return {name: 1 / len(members) / len(members[task]) for name, task in tasks.items()}
