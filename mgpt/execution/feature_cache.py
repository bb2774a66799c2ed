"""The feature cache: what the frozen tower (and Q-Former) makes of each distinct image that a training shows, computed once on Ray.

Below the store's `features/`: `images/<sha256 of a shard>` names the images of a curated shard, 32 bytes a row; `<key>/` holds the packs
of one frozen part (`EncoderSpec.key`), one or more a shard. Every stage and model with the same frozen part reads the same packs. Packs
are whole or absent, so a killed computation goes on with those that are not there.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.data.feature_packs import DTYPES, SUFFIX, FeatureReader, serialize_pack
from mgpt.data.images import NO_IMAGE, image_digest, write_image_digests
from mgpt.execution.data_feed import Feed
from mgpt.execution.worker_env import set_up_ray_train
from mgpt.models.loading import Start
from mgpt.storage import Entry, Store, sha256_bytes

IMAGES = "images"
_PACK_BYTES = 256 << 20  # of features in one file, about
_HERE_BYTES = 256 << 20  # of shards whose images are named sooner here than a process elsewhere starts
_BATCH = 32  # images in one pass of the tower
_COMPUTERS: dict[str, _Computer] = {}  # of this process, by what it was made of; Ray reuses a process for many tasks


@dataclass(frozen=True)
class Cached:
    """What the cache means for one training. `folder` is None where it is off; then nothing was computed.

    `shows` images are shown in all steps, `images` of them distinct, `size` bytes of features. `computed` of them were not there yet;
    that took `seconds`, of which processes computed `work_seconds` side by side and else started. The files say that one process needs
    `image_seconds` for an image; `processes` train.
    """

    folder: str | None
    shows: int
    images: int
    size: int = 0
    computed: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    image_seconds: float = 0.0
    processes: int = 1

    def estimate(self) -> str:
        """How often images are shown, and so whether the cache pays."""
        if not self.images:
            return "off"
        shown = f"{self.shows} images shown, {self.images} of them distinct ({self.shows / self.images:.1f} times each)"
        return f"{'on' if self.folder else 'off'}: {shown}" + (
            f", {self.size / 1e6:.0f} MB of features" if self.size else ""
        )

    def effect(self, step_seconds: float, steps: int) -> str:
        """The estimate, what the cache cost and, for a training of so long steps, what it saves."""
        if self.folder is None:
            return self.estimate()
        without = step_seconds + self.image_seconds * self.shows / steps / self.processes
        cost = f"computed {self.computed} in {self.seconds:.1f} s, {self.images - self.computed} were there"
        saved = (without - step_seconds) * steps
        return f"{self.estimate()}; {cost}; a step without it about {without:.3f} s, so {saved:.0f} s saved in {steps} steps"


@dataclass(frozen=True)
class Unit:
    """One pack to make: the images of some rows of a shard."""

    shard: str
    rows: list[int]
    name: str


def prepare(feed: Feed, settings: TrainingSettings, workers: WorkerSettings, root: str, warmed: Any = None) -> Cached:
    """Decides whether the training uses the cache below `root`, and computes what is not in it. Needs a running Ray. `warmed` is ready when
    a process has the model's code, which then serves here.

    Raises ray.exceptions.RayTaskError when an image cannot be read, with the image's own error as its cause.
    """
    import ray

    if settings.features is False:
        return Cached(None, 0, 0)
    # Runs meanwhile, and elsewhere: this process needs neither torch's models nor the backbones.
    ask = ray.remote(num_cpus=0, **set_up_ray_train(workers))(_kind)
    kind = ask.remote(feed.start, settings.precision, settings.features_dtype, warmed)
    store, entries = (
        Store(root),
        [entry for shards in feed.entries().values() for entry in sorted(shards, key=lambda one: one.name)],
    )
    digests, times = _digests(store, entries), _times(feed)
    import ray.train.torch  # what training needs next takes seconds, and the answer is not there yet

    shown = (times > 0) & (digests != NO_IMAGE)
    rows = np.flatnonzero(shown)
    first = rows[
        np.sort(np.unique(digests[rows], return_index=True)[1])
    ]  # the first row that shows each distinct image
    plan = Cached(None, int(times[rows].sum()), len(first))
    if not plan.images or (settings.features == "auto" and plan.shows <= settings.features_above * plan.images):
        return plan
    key, size = ray.get(kind)
    plan = replace(plan, size=plan.images * size)
    if settings.features == "auto" and plan.size > settings.features_gigabytes * 1e9:
        return plan
    return _fill(replace(plan, folder=store.uri(key)), feed.start, entries, digests, first, settings, workers)


def _kind(start: Start, precision: str, dtype: str, _warmed: Any) -> tuple[str, int]:
    """(key, bytes an image) of a frozen part's features."""
    spec = start.encoder()
    return spec.key(precision, dtype), spec.tokens * spec.width * DTYPES[dtype].itemsize


def _fill(
    plan: Cached,
    start: Start,
    entries: Sequence[Entry],
    digests: np.ndarray,
    first: np.ndarray,
    settings: TrainingSettings,
    workers: WorkerSettings,
) -> Cached:
    """Computes the images that the plan's folder does not hold."""
    assert plan.folder is not None
    began, before = time.perf_counter(), FeatureReader(plan.folder)
    missing = np.array([row for row in first if _whole(digests[row]) not in before.locations], np.int64)
    units = list(_units(entries, digests, missing, max(1, _PACK_BYTES * plan.images // plan.size)))
    if units:
        print(f"features: computing {len(missing)} of {plan.images} images in {len(units)} files", flush=True)
        _compute(units, start, settings, workers, plan.folder)
    seconds, packs = time.perf_counter() - began, FeatureReader(plan.folder).packs
    there = {pack.uri for pack in before.packs}
    worked = sum(pack.seconds for pack in packs if pack.uri not in there) / max(1, min(workers.workers, len(units)))
    each = sum(pack.seconds for pack in packs) / sum(len(pack.digests) for pack in packs)
    done = replace(plan, computed=len(missing), seconds=seconds, work_seconds=worked)
    return replace(done, image_seconds=each, processes=workers.workers)


def _whole(digest: bytes) -> bytes:
    return bytes(digest).ljust(32, b"\0")  # numpy leaves out zeros at the end


def _units(entries: Sequence[Entry], digests: np.ndarray, missing: np.ndarray, rows_per_pack: int) -> Iterator[Unit]:
    """Packs are cut at fixed rows of a shard: what is left of a killed computation is cut as before."""
    start = 0
    for entry in entries:
        stop = start + int(entry.meta["rows"])
        inside = missing[(missing >= start) & (missing < stop)] - start
        for part in np.unique(inside // rows_per_pack):
            rows = inside[inside // rows_per_pack == part].tolist()
            content = sha256_bytes(b"".join(_whole(digests[start + row]) for row in rows))
            yield Unit(entry.uri, rows, f"{entry.sha256[:16]}-{part}-{content[:8]}{SUFFIX}")
        start = stop


def _times(feed: Feed) -> np.ndarray:
    """How often the stream picks each row of the feed's datasets, one after another."""
    shown = feed.mixture().draw_counts(feed.steps)
    return np.concatenate([shown[name] for name in feed.entries()])


def _digests(store: Store, entries: Sequence[Entry]) -> np.ndarray:
    """(rows of all shards,) S32: each row's image."""
    import ray

    uris = [store.uri(IMAGES, entry.sha256) for entry in entries]
    new = [(entry, uri) for entry, uri in zip(entries, uris, strict=True) if not store.exists(uri)]
    if sum(entry.size for entry, _ in new) < _HERE_BYTES:
        for entry, uri in new:
            write_image_digests(entry.uri, uri)
    else:
        ray.get([ray.remote(num_cpus=1)(write_image_digests).remote(entry.uri, uri) for entry, uri in new])
    return np.frombuffer(b"".join(store.read(uri) for uri in uris), "S32")


def _compute(units: list[Unit], start: Start, settings: TrainingSettings, workers: WorkerSettings, folder: str) -> None:
    import ray.data

    blocks = [pa.Table.from_pylist([{"shard": unit.shard, "rows": unit.rows, "name": unit.name}]) for unit in units]
    settled = (start, settings.precision, settings.features_dtype, folder)
    options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": workers.cpus_per_feed}
    if workers.gpus_per_worker:
        pool = ray.data.ActorPoolStrategy(size=min(workers.workers, len(units)))
        options |= {"fn_constructor_args": settled, "compute": pool, "num_gpus": workers.gpus_per_worker}
    else:  # a task runs where the model's code is imported already; an actor would be one process more
        options |= {"fn_args": settled} | set_up_ray_train(workers)
    dataset = ray.data.from_arrow(blocks).map_batches(
        _Computer if workers.gpus_per_worker else _compute_here, **options
    )
    dataset.context.enable_progress_bars = False
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def _compute_here(units: pa.Table, *settled: Any) -> pa.Table:
    key = repr(settled)
    if key not in _COMPUTERS:
        _COMPUTERS.clear()
        _COMPUTERS[key] = _Computer(*settled)
    return _COMPUTERS[key](units)


class _Computer:
    """Holds the loaded tower; one thread, since it has one CPU."""

    def __init__(self, start: Start, precision: str, dtype: str, folder: str) -> None:
        import torch

        from mgpt.models.encoder import ImageEncoder
        from mgpt.models.image_processing_minigpt import MiniGPTImageProcessor

        torch.set_num_threads(1)
        spec = start.encoder()
        self.encoder, self.pixels = (
            ImageEncoder(spec, precision),
            MiniGPTImageProcessor(spec.image_size, spec.image_mean, spec.image_std),
        )
        self.dtype, self.folder = DTYPES[dtype], folder

    def __call__(self, units: pa.Table) -> pa.Table:
        for unit in units.to_pylist():
            self._make(Unit(**unit))
        return pa.table({"name": units["name"]})

    def _make(self, unit: Unit) -> None:
        import torch

        column = pq.read_table(io.BytesIO(Store(unit.shard.rsplit("/", 1)[0]).read(unit.shard)), columns=["image"])[
            "image"
        ]
        images = [column[row].as_py() for row in unit.rows]
        began = time.perf_counter()
        cut = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
        features = torch.cat([self.encoder(self.pixels(some).pixel_values).to(self.dtype) for some in cut])
        content = serialize_pack([image_digest(image) for image in images], features, time.perf_counter() - began)
        Store(self.folder).write(f"{self.folder}/{unit.name}", content)
