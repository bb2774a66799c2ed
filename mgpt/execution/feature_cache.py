"""The feature cache: output of the frozen tower (and Q-Former) for each distinct image of a training, computed on Ray.

Below the store's `features/`, `<key>/` holds the packs of one frozen part (`EncoderSpec.key`), one or more per curated
shard. Every stage and model with that frozen part reads the same packs. They are written atomically, so a killed
computation resumes with the missing ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.data.feature_packs import DTYPES, SUFFIX, FeatureReader, serialize_pack
from mgpt.data.shards import RowReader, image_digests
from mgpt.data.types import IMAGE_BYTES
from mgpt.execution.data_feed import DataPlan
from mgpt.execution.types import CacheReport
from mgpt.execution.worker_env import worker_environment
from mgpt.models.loading import ModelSpec
from mgpt.storage import Entry, Store, sha256_bytes

_PACK_BYTES = 256 << 20  # approximate size of a pack
_READERS = 16  # shards whose image names are read at the same time
_BATCH = 32  # images per forward pass of the tower
_ENCODERS: dict[str, _PackWriter] = {}  # of this process, by their arguments; Ray reuses a process for many tasks


@dataclass(frozen=True)
class Pack:
    """A pack to compute: images of a shard, each as its row and its number in that row."""

    shard: str
    images: list[tuple[int, int]]
    name: str


@dataclass(frozen=True)
class _Images:
    """All images of some shards, in order.

    Attributes:
        digests: (images,) S32.
        shards, rows, numbers: (images,) int; number of the shard, row in it, and number in the row.
        positions: (images,) int; row counted over all shards.
    """

    digests: np.ndarray
    shards: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> _Images:
        with ThreadPoolExecutor(_READERS) as pool:
            digests, counts = zip(*pool.map(image_digests, [entry.uri for entry in entries]), strict=True)
        per_row = np.concatenate(counts)
        rows = np.concatenate([np.arange(len(count)) for count in counts])
        shards = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
        first = np.cumsum(per_row) - per_row  # number of the first image of each row
        numbers = np.arange(int(per_row.sum())) - np.repeat(first, per_row)
        repeated = (np.repeat(values, per_row) for values in (shards, rows, np.arange(len(per_row))))
        shard, row, position = repeated
        return cls(np.concatenate(digests), shard, row, numbers, position)


def fill_cache(
    plan: DataPlan, settings: TrainingSettings, workers: WorkerSettings, root: str, warmed: Any = None
) -> CacheReport:
    """Decides whether the training uses the cache below `root`, and computes the features that it lacks.

    `warmed` is a reference that is ready once a process has imported the model's code; that process then serves here.

    Raises:
        ray.exceptions.RayTaskError: an image cannot be read; the cause is the image's own error.
    """
    if settings.features is False:
        return CacheReport(None, 0, 0)
    # Runs in that process meanwhile: this one needs neither the model's code nor the backbones.
    describe = ray.remote(num_cpus=0, runtime_env={"env_vars": worker_environment(workers)})(_describe_features)
    description = describe.remote(plan.model, settings.precision, settings.features_dtype, warmed)
    entries = [entry for shards in plan.entries().values() for entry in sorted(shards, key=lambda shard: shard.name)]
    images, times = _Images.of(entries), _times_shown(plan)
    import_module("ray.train.torch")  # needed next; takes seconds, and the description is not ready yet

    shown = np.flatnonzero(times[images.positions])
    first = shown[np.sort(np.unique(images.digests[shown], return_index=True)[1])]  # first of each distinct image
    report = CacheReport(None, int(times[images.positions[shown]].sum()), len(first))
    if not report.images or (settings.features == "auto" and report.shows <= settings.features_above * report.images):
        return report
    key, size = ray.get(description)
    report = replace(report, size=report.images * size)
    if settings.features == "auto" and report.size > settings.features_gigabytes * 1e9:
        return report
    return _fill(replace(report, folder=Store(root).uri(key)), plan.model, entries, images, first, settings, workers)


def _describe_features(model: ModelSpec, precision: str, dtype: str, _warmed: Any) -> tuple[str, int]:
    """Returns the cache key and the bytes per image of a frozen part's features."""
    spec = model.encoder_spec()
    return spec.key(precision, dtype), spec.tokens * spec.width * DTYPES[dtype].itemsize


def _fill(
    report: CacheReport,
    model: ModelSpec,
    entries: Sequence[Entry],
    images: _Images,
    first: np.ndarray,
    settings: TrainingSettings,
    workers: WorkerSettings,
) -> CacheReport:
    """Computes the images that the report's folder does not hold."""
    assert report.folder is not None
    began, before = time.perf_counter(), FeatureReader(report.folder)
    missing = np.array([at for at in first if _padded(images.digests[at]) not in before.locations], np.int64)
    packs = list(_packs(entries, images, missing, max(1, _PACK_BYTES * report.images // report.size)))
    if packs:
        print(f"features: computing {len(missing)} of {report.images} images in {len(packs)} files", flush=True)
        _compute(packs, model, settings, workers, report.folder)
    seconds, stored = time.perf_counter() - began, FeatureReader(report.folder).packs
    cached = {pack.uri for pack in before.packs}
    computing = sum(pack.seconds for pack in stored if pack.uri not in cached)
    return replace(
        report,
        computed=len(missing),
        seconds=seconds,
        work_seconds=computing / max(1, min(workers.workers, len(packs))),
        image_seconds=sum(pack.seconds for pack in stored) / sum(len(pack.digests) for pack in stored),
        processes=workers.workers,
    )


def _padded(digest: bytes) -> bytes:
    return bytes(digest).ljust(32, b"\0")  # numpy strips zeros at the end


def _packs(entries: Sequence[Entry], images: _Images, missing: np.ndarray, images_per_pack: int) -> Iterator[Pack]:
    """Yields packs cut at fixed rows of a shard: the rest of a killed computation is cut as before."""
    for number, entry in enumerate(entries):
        inside = missing[images.shards[missing] == number]
        parts = images.rows[inside] // images_per_pack
        for part in np.unique(parts):
            chosen = inside[parts == part]
            content = sha256_bytes(b"".join(map(_padded, images.digests[chosen])))
            places = list(zip(images.rows[chosen].tolist(), images.numbers[chosen].tolist(), strict=True))
            yield Pack(entry.uri, places, f"{entry.sha256[:16]}-{part}-{content[:8]}{SUFFIX}")


def _times_shown(plan: DataPlan) -> np.ndarray:
    """Returns how often the stream picks each row of the plan's datasets, one dataset after another."""
    shown = plan.mixture().draw_counts(plan.steps)
    return np.concatenate([shown[name] for name in plan.entries()])


def _compute(
    packs: list[Pack], model: ModelSpec, settings: TrainingSettings, workers: WorkerSettings, folder: str
) -> None:
    blocks = [pa.Table.from_pylist([asdict(pack)]) for pack in packs]
    arguments = (model, settings.precision, settings.features_dtype, folder)
    options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": workers.cpus_per_feed}
    if workers.gpus_per_worker:
        pool = ray.data.ActorPoolStrategy(size=min(workers.workers, len(packs)))
        options |= {"fn_constructor_args": arguments, "compute": pool, "num_gpus": workers.gpus_per_worker}
    else:  # a task runs in a process that has imported the model's code; an actor would be one process more
        options |= {"fn_args": arguments, "runtime_env": {"env_vars": worker_environment(workers)}}
    write = _PackWriter if workers.gpus_per_worker else _write_packs
    dataset = ray.data.from_arrow(blocks).map_batches(write, **options)
    dataset.context.enable_progress_bars = False
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def _write_packs(packs: pa.Table, *arguments: Any) -> pa.Table:
    key = repr(arguments)
    if key not in _ENCODERS:
        _ENCODERS.clear()
        _ENCODERS[key] = _PackWriter(*arguments)
    return _ENCODERS[key](packs)


class _PackWriter:
    """Holds the loaded tower; one thread, since it has one CPU."""

    def __init__(self, model: ModelSpec, precision: str, dtype: str, folder: str) -> None:
        from mgpt.models.encoder import ImageEncoder  # imports transformers, which the driver does not need
        from mgpt.models.image_processing_minigpt import MiniGPTImageProcessor

        torch.set_num_threads(1)
        spec = model.encoder_spec()
        self.encoder = ImageEncoder(spec, precision)
        self.processor = MiniGPTImageProcessor(spec.image_size, spec.image_mean, spec.image_std)
        self.reader = RowReader([IMAGE_BYTES])  # one, since it keeps threads and open shards
        self.dtype, self.folder = DTYPES[dtype], folder

    def __call__(self, packs: pa.Table) -> pa.Table:
        for pack in packs.to_pylist():
            self._write(Pack(**pack))
        return pa.table({"name": packs["name"]})

    def _write(self, pack: Pack) -> None:
        rows = self.reader.rows([(pack.shard, row) for row, _ in pack.images])
        images = [row[IMAGE_BYTES][number] for row, (_, number) in zip(rows, pack.images, strict=True)]
        began = time.perf_counter()
        batches = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
        features = [self.encoder(self.processor(batch).pixel_values).to(self.dtype) for batch in batches]
        digests = [hashlib.sha256(image).digest() for image in images]
        content = serialize_pack(digests, torch.cat(features), time.perf_counter() - began)
        Store(self.folder).write(f"{self.folder}/{pack.name}", content)
