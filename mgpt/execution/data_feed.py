"""Feeds training with Ray Data: reading, decoding, rendering, tokenising and collating run in Ray Data's tasks, not in the training
process.

What a step sees is a pure function of (mixture, step); one row of the dataset is one step of one worker, already collated. So the
position of the stream is a step number: the plan builds one dataset per worker that begins at the position of the last committed
checkpoint, for any number of workers. Open-source Ray has no mid-epoch dataset state of its own (ray#48224).
"""

from __future__ import annotations

import io
import json
import random
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from mgpt.config.training import TrainingSettings
from mgpt.data.images import image_digest
from mgpt.data.mixture import Mixture, SampleRef, sample_rng
from mgpt.data.tasks import load_tasks, render
from mgpt.data.types import Sample
from mgpt.models.loading import Start
from mgpt.storage import Entry, Manifest, Store, sha256_bytes

if TYPE_CHECKING:
    from mgpt.data.feature_packs import FeatureReader
    from mgpt.training.batch import Batch
    from mgpt.training.types import StepBatches

# Torch and the model's code are imported where they are used: Ray Train's dataset manager imports this module too, and needs neither.
NAME = "train"  # the dataset's name in Ray Train
_SAMPLES_PER_TASK = 256  # samples that one Ray Data task prepares, about
_CACHE_BYTES = 256 << 20  # decompressed row groups that a feeding process keeps
PATIENCE_SECONDS = 0.02


class SampleReader:
    """Random access to the curated samples of some datasets: keeps the row groups it used last in memory."""

    def __init__(self, entries: Mapping[str, list[Entry]]) -> None:
        self._shards = {dataset: sorted(shards, key=lambda shard: shard.name) for dataset, shards in entries.items()}
        self._ends = {
            dataset: np.cumsum([shard.meta["rows"] for shard in shards]) for dataset, shards in self._shards.items()
        }
        self._files: dict[str, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def read(self, dataset: str, index: int) -> Sample:
        """Sample number `index` of a dataset, counted over its shards in the order of their names."""
        shard = int(np.searchsorted(self._ends[dataset], index, side="right"))
        row = index - int(self._ends[dataset][shard - 1]) if shard else index
        file = self._file(self._shards[dataset][shard].uri)
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if row < rows:
                return Sample.from_row(
                    self._group(self._shards[dataset][shard].uri, number).slice(row, 1).to_pylist()[0]
                )
            row -= rows
        raise ValueError(f"{self._shards[dataset][shard].name}: fewer rows than its manifest says; run curate again")

    def _file(self, uri: str) -> pq.ParquetFile:
        if uri not in self._files:
            self._files[uri] = pq.ParquetFile(io.BytesIO(Store(uri.rsplit("/", 1)[0]).read(uri)))
        return self._files[uri]

    def _group(self, uri: str, number: int) -> pa.Table:
        key = (uri, number)
        if key not in self._groups:
            self._groups[key] = self._file(uri).read_row_group(number)
            while len(self._groups) > 1 and sum(table.nbytes for table in self._groups.values()) > _CACHE_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


@dataclass(frozen=True)
class Feed:
    """Everything that decides what a worker sees at a step. `tasks` renames a dataset's task; `features` is the folder of the cached
    features that stand in place of images, or None."""

    manifest: Manifest
    start: Start
    format: str
    weights: dict[str, float]
    global_batch_size: int
    micro_batch_size: int
    steps: int
    seed: int
    pack_tokens: int | None = None
    split: str = "train"
    tasks: dict[str, str] = field(default_factory=dict)
    task_files: tuple[str, ...] = ()
    features: str | None = None

    @classmethod
    def of(cls, settings: TrainingSettings, manifest: Manifest, start: Start, task_files: tuple[str, ...] = ()) -> Feed:
        """The feed of a stage; keeps of the manifest what its mixture names.

        Raises ValueError that names every dataset of the mixture without a shard, and those that there are.
        """
        used = Manifest([entry for entry in manifest.entries if entry.meta.get("dataset") in settings.mixture])
        sizes = (settings.global_batch_size, settings.micro_batch_size, settings.steps)
        rest: dict[str, Any] = {"pack_tokens": settings.pack_tokens, "tasks": settings.tasks, "task_files": task_files}
        whole = cls(manifest, start, settings.format, settings.mixture, *sizes, settings.seed, **rest)
        whole.entries()
        return replace(whole, manifest=used)

    @cached_property
    def digest(self) -> str:
        """sha256 over all of it."""
        content = {**asdict(self), "manifest": self.manifest.digest}
        return sha256_bytes(json.dumps(content, sort_keys=True).encode())

    def entries(self) -> dict[str, list[Entry]]:
        """The shards of each dataset of the mixture. Raises ValueError that names every dataset without one."""
        found = {name: self.manifest.select(dataset=name, split=self.split) for name in self.weights}
        missing = [name for name, shards in found.items() if not shards]
        if missing:
            known = sorted(
                {entry.meta["dataset"] for entry in self.manifest.entries if entry.meta.get("split") == self.split}
            )
            there = f"the manifest holds {', '.join(known) or 'nothing'}"
            raise ValueError(
                f"mixture: no {self.split} data for {', '.join(missing)}; {there}. Correct the name or add the source"
            )
        return found

    def mixture(self) -> Mixture:
        """The plan of all steps."""
        sizes = {name: sum(entry.meta["rows"] for entry in shards) for name, shards in self.entries().items()}
        return Mixture(seed=self.seed, weights=self.weights, sizes=sizes, global_batch_size=self.global_batch_size)


class Preparer:
    """A feeding process's tools: made once a process, they serve all its tasks."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.mixture = feed, feed.mixture()
        self.reader = SampleReader(feed.entries())
        self.tasks = load_tasks(*feed.task_files)
        self.processor = feed.start.processor()
        self.features = None if feed.features is None else _feature_reader(feed.features)

    def batches(self, step: int, rank: int, world_size: int) -> list[Batch]:
        """Worker `rank`'s part of a step: every `world_size`-th pick, cut into batches of like length."""
        from mgpt.data.packing import SINGLE_ROWS
        from mgpt.training.batch import cut_by_length, cut_packed

        picks = self.mixture.batch(step)[rank::world_size]
        samples = [self.reader.read(pick.dataset, pick.index) for pick in picks]
        messages = [self._render(pick, sample) for pick, sample in zip(picks, samples, strict=True)]
        images = [sample.image for sample in samples if sample.image]
        pixels = images if images and self.features is None else None
        tensors = self.processor(
            images=pixels, conversations=messages, format=self.feed.format, labels=True, padding_side="right"
        )
        if images and self.features is not None:
            tensors["image_features"] = self.features.read([image_digest(image) for image in images])
        ids = [f"{sample.dataset}:{sample.id}" for sample in samples]
        cut = (tensors, ids, [int(bool(sample.image)) for sample in samples], self.feed.micro_batch_size)
        if self.feed.pack_tokens is None:
            return cut_by_length(*cut)
        return cut_packed(
            *cut, self.feed.pack_tokens, single=self.feed.start.loading.get("attn_implementation") in SINGLE_ROWS
        )

    def _render(self, pick: SampleRef, sample: Sample) -> list[dict[str, str]]:
        rng: random.Random = sample_rng(self.feed.seed, pick.position)
        return render(sample, rng, task=self.feed.tasks.get(pick.dataset), tasks=self.tasks)


def _feature_reader(folder: str) -> FeatureReader:
    from mgpt.data.feature_packs import FeatureReader

    return FeatureReader(folder)


_PREPARERS: dict[str, Preparer] = {}  # of this process, by the feed's digest; Ray reuses a process for many tasks


def preparer(feed: Feed) -> Preparer:
    """This process's preparer of a feed; a call ahead of the first step warms a process of the pool for feeding tasks."""
    import torch

    torch.set_num_threads(1)  # the training workers want the other cores
    if feed.digest not in _PREPARERS:
        _PREPARERS.clear()
        _PREPARERS[feed.digest] = Preparer(feed)
    return _PREPARERS[feed.digest]


def _prepare(table: pa.Table, feed: Feed, rank: int, world_size: int) -> pa.Table:
    prepare, steps = preparer(feed).batches, table["step"].to_pylist()
    blobs = [[batch.to_bytes() for batch in prepare(step, rank, world_size)] for step in steps]
    return pa.table({"step": steps, "batches": pa.array(blobs, type=pa.list_(pa.large_binary()))})


class Patience(ExecutionCallback):
    """A pause in each turn of the loop with which Ray Data follows a dataset.

    That loop is a thread of the training worker. While enough steps wait for the worker no task runs, and then Ray (2.60) turns it without
    a pause: it took the interpreter from the training thread, whose steps became three times as long.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(PATIENCE_SECONDS)


def worker_dataset(feed: Feed, start: int, rank: int, world_size: int, cpus: float) -> ray.data.Dataset:
    """The steps from `start` on as worker `rank` sees them: rows `{step, batches}`, in order."""
    per_task = max(1, _SAMPLES_PER_TASK * world_size // feed.global_batch_size)
    steps = range(start, feed.steps)
    plan = ray.data.from_arrow([pa.table({"step": steps[at : at + per_task]}) for at in range(0, len(steps), per_task)])
    plan.context.execution_options.preserve_order = True
    plan.context.custom_execution_callback_classes.append(Patience)
    prepare = partial(_prepare, feed=feed, rank=rank, world_size=world_size)
    return plan.map_batches(prepare, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=cpus)


class PlannedData(ray.train.DataConfig):
    """Gives each worker its own dataset of the plan, from the last committed checkpoint's step on.

    Ray calls `configure` at every start of a worker group: after a failure, and when the number of workers changes.
    """

    def __init__(self, feed: Feed, run_uri: str, cpus: float) -> None:
        super().__init__()
        self._feed, self._run_uri, self._cpus = feed, run_uri, cpus

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        """One dataset per worker. A run that has all its steps gets none."""
        start = committed_step(self._run_uri)
        if start >= self._feed.steps:
            return [{} for _ in range(world_size)]
        return [
            {NAME: worker_dataset(self._feed, start, rank, world_size, self._cpus).iterator()}
            for rank in range(world_size)
        ]


def committed_step(run_uri: str) -> int:
    """The step of the last checkpoint that Ray Train committed below `run_uri`; 0 where there is none."""
    if not Store(run_uri).exists(f"{run_uri}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"):
        return 0
    checkpoint = ray.train.Result.from_path(run_uri).checkpoint
    return 0 if checkpoint is None else int(checkpoint.get_metadata()["step"])


def stream(shard: ray.data.DataIterator) -> Iterator[StepBatches]:
    """The training loop's stream of a worker's dataset."""
    from mgpt.training.batch import Batch

    tables: Any = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)  # type: ignore[arg-type]
    for table in tables:
        for step, blobs in zip(table["step"].to_pylist(), table["batches"], strict=True):
            yield step, [Batch.from_bytes(blob.as_py()) for blob in blobs.values]
