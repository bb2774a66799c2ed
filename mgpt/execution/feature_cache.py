"""The feature cache: output of the frozen tower (and Q-Former) for each distinct image of a training, computed on Ray.

Below the store's `features/`, `images/<sha256 of a shard>` holds the image digests of a curated shard, 32 bytes a row,
and `<key>/` the packs of one frozen part (`EncoderSpec.key`), one or more per shard. Every stage and model with that
frozen part reads the same packs. They are whole or absent, so a killed computation resumes with the missing ones.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.data.feature_packs import DTYPES, SUFFIX, FeatureReader, serialize_pack
from mgpt.data.images import NO_IMAGE, image_digest, write_image_digests
from mgpt.execution.data_feed import DataPlan
from mgpt.execution.types import CacheReport
from mgpt.execution.worker_env import worker_environment
from mgpt.models.loading import ModelSpec
from mgpt.storage import Entry, Store, sha256_bytes

IMAGES = "images"
_PACK_BYTES = 256 << 20  # approximate size of a pack
_LOCAL_BYTES = 256 << 20  # shards up to this size are hashed here sooner than a process elsewhere starts
_BATCH = 32  # images per forward pass of the tower
_ENCODERS: dict[str, _PackWriter] = {}  # of this process, by their arguments; Ray reuses a process for many tasks


@dataclass(frozen=True)
class Pack:
    """A pack to compute: the images of some rows of a shard."""

    shard: str
    rows: list[int]
    name: str


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
    store = Store(root)
    entries = [entry for shards in plan.entries().values() for entry in sorted(shards, key=lambda shard: shard.name)]
    digests, times = _image_digests(store, entries), _times_shown(plan)
    import_module("ray.train.torch")  # needed next; takes seconds, and the description is not ready yet

    rows = np.flatnonzero((times > 0) & (digests != NO_IMAGE))
    first = rows[np.sort(np.unique(digests[rows], return_index=True)[1])]  # first row of each distinct image
    report = CacheReport(None, int(times[rows].sum()), len(first))
    if not report.images or (settings.features == "auto" and report.shows <= settings.features_above * report.images):
        return report
    key, size = ray.get(description)
    report = replace(report, size=report.images * size)
    if settings.features == "auto" and report.size > settings.features_gigabytes * 1e9:
        return report
    return _fill(replace(report, folder=store.uri(key)), plan.model, entries, digests, first, settings, workers)


def _describe_features(model: ModelSpec, precision: str, dtype: str, _warmed: Any) -> tuple[str, int]:
    """Returns the cache key and the bytes per image of a frozen part's features."""
    spec = model.encoder_spec()
    return spec.key(precision, dtype), spec.tokens * spec.width * DTYPES[dtype].itemsize


def _fill(
    report: CacheReport,
    model: ModelSpec,
    entries: Sequence[Entry],
    digests: np.ndarray,
    first: np.ndarray,
    settings: TrainingSettings,
    workers: WorkerSettings,
) -> CacheReport:
    """Computes the images that the report's folder does not hold."""
    assert report.folder is not None
    began, before = time.perf_counter(), FeatureReader(report.folder)
    missing = np.array([row for row in first if _padded(digests[row]) not in before.locations], np.int64)
    packs = list(_packs(entries, digests, missing, max(1, _PACK_BYTES * report.images // report.size)))
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


def _packs(entries: Sequence[Entry], digests: np.ndarray, missing: np.ndarray, rows_per_pack: int) -> Iterator[Pack]:
    """Yields packs cut at fixed rows of a shard: the rest of a killed computation is cut as before."""
    start = 0
    for entry in entries:
        stop = start + int(entry.meta["rows"])
        inside = missing[(missing >= start) & (missing < stop)] - start
        for part in np.unique(inside // rows_per_pack):
            rows = inside[inside // rows_per_pack == part].tolist()
            content = sha256_bytes(b"".join(_padded(digests[start + row]) for row in rows))
            yield Pack(entry.uri, rows, f"{entry.sha256[:16]}-{part}-{content[:8]}{SUFFIX}")
        start = stop


def _times_shown(plan: DataPlan) -> np.ndarray:
    """Returns how often the stream picks each row of the plan's datasets, one dataset after another."""
    shown = plan.mixture().draw_counts(plan.steps)
    return np.concatenate([shown[name] for name in plan.entries()])


def _image_digests(store: Store, entries: Sequence[Entry]) -> np.ndarray:
    """Returns each row's image digest: (rows of all shards,) S32."""
    uris = [store.uri(IMAGES, entry.sha256) for entry in entries]
    new = [(entry, uri) for entry, uri in zip(entries, uris, strict=True) if not store.exists(uri)]
    if sum(entry.size for entry, _ in new) < _LOCAL_BYTES:
        for entry, uri in new:
            write_image_digests(entry.uri, uri)
    else:
        ray.get([ray.remote(num_cpus=1)(write_image_digests).remote(entry.uri, uri) for entry, uri in new])
    return np.frombuffer(b"".join(store.read(uri) for uri in uris), "S32")


def _compute(
    packs: list[Pack], model: ModelSpec, settings: TrainingSettings, workers: WorkerSettings, folder: str
) -> None:
    blocks = [pa.Table.from_pylist([{"shard": pack.shard, "rows": pack.rows, "name": pack.name}]) for pack in packs]
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
        self.dtype, self.folder = DTYPES[dtype], folder

    def __call__(self, packs: pa.Table) -> pa.Table:
        for pack in packs.to_pylist():
            self._write(Pack(**pack))
        return pa.table({"name": packs["name"]})

    def _write(self, pack: Pack) -> None:
        shard = Store(pack.shard.rsplit("/", 1)[0]).read(pack.shard)
        column = pq.read_table(io.BytesIO(shard), columns=["image"])["image"]
        images = [column[row].as_py() for row in pack.rows]
        began = time.perf_counter()
        batches = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
        features = [self.encoder(self.processor(batch).pixel_values).to(self.dtype) for batch in batches]
        digests = [image_digest(image) for image in images]
        content = serialize_pack(digests, torch.cat(features), time.perf_counter() - began)
        Store(self.folder).write(f"{self.folder}/{pack.name}", content)
