"""Feeds training with Ray Data: tasks read, decode, render, tokenise and collate, not the training workers.

What a step sees is a pure function of (mixture, step). One row of the dataset is one step of one worker, collated, so
the position of the stream is a step number: one dataset per worker begins at the step of the last committed checkpoint,
for any number of workers. Open-source Ray has no mid-epoch dataset state of its own (ray#48224).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
import ray.train

from mgpt.config.training import TrainingSettings
from mgpt.data.mixture import Mixture, SampleRef, sample_rng
from mgpt.data.shards import SampleReader
from mgpt.data.tasks import load_tasks, render
from mgpt.data.types import Sample
from mgpt.execution.checkpoints import CheckpointStore
from mgpt.execution.compat import PollThrottle
from mgpt.models.loading import ModelSpec
from mgpt.storage import Entry, Manifest, sha256_bytes

if TYPE_CHECKING:
    from mgpt.data.feature_packs import FeatureReader
    from mgpt.training.batch import Batch
    from mgpt.training.types import StepBatches

# Torch and the model's code are imported where they are used: Ray Train's dataset manager imports this module too, and
# needs neither.
DATASET = "train"  # its name in Ray Train
_SAMPLES_PER_TASK = 256  # approximate number of samples that one Ray Data task prepares


@dataclass(frozen=True)
class DataPlan:
    """Everything that determines what a worker sees at a step.

    Args:
        model: its processor makes the tensors.
        format: prompt format.
        weights: sampling weight of each dataset.
        tasks: task that renders a dataset, in place of its samples' own.
        features: URI of the cached features used in place of images; None for images.
    """

    manifest: Manifest
    model: ModelSpec
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
    def from_settings(
        cls, settings: TrainingSettings, manifest: Manifest, model: ModelSpec, task_files: tuple[str, ...] = ()
    ) -> DataPlan:
        """Returns the plan of a stage, with the shards of the datasets that its mixture names.

        Raises:
            ValueError: a dataset of the mixture has no shard; names all such datasets, and those that exist.
        """
        plan = cls(
            manifest=manifest,
            model=model,
            format=settings.format,
            weights=settings.mixture,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=settings.micro_batch_size,
            steps=settings.steps,
            seed=settings.seed,
            pack_tokens=settings.pack_tokens,
            tasks=settings.tasks,
            task_files=task_files,
        )
        plan.entries()
        used = [entry for entry in manifest.entries if entry.meta.get("dataset") in settings.mixture]
        return replace(plan, manifest=Manifest(used))

    @cached_property
    def digest(self) -> str:
        """sha256 over the whole plan."""
        content = {**asdict(self), "manifest": self.manifest.digest}
        return sha256_bytes(json.dumps(content, sort_keys=True).encode())

    def entries(self) -> dict[str, list[Entry]]:
        """Returns the shards of each dataset of the mixture. Raises ValueError that names every dataset without one."""
        found = {name: self.manifest.select(dataset=name, split=self.split) for name in self.weights}
        missing = [name for name, shards in found.items() if not shards]
        if missing:
            known = {entry.meta["dataset"] for entry in self.manifest.entries if entry.meta.get("split") == self.split}
            raise ValueError(
                f"mixture: no {self.split} data for {', '.join(missing)}; the manifest holds "
                f"{', '.join(sorted(known)) or 'nothing'}. Correct the name or add the source"
            )
        return found

    def mixture(self) -> Mixture:
        """Returns the samples of all steps."""
        sizes = {name: sum(entry.meta["rows"] for entry in shards) for name, shards in self.entries().items()}
        return Mixture(seed=self.seed, weights=self.weights, sizes=sizes, global_batch_size=self.global_batch_size)


class BatchBuilder:
    """Builds the batches of any step. One instance per process, used by all Ray tasks that run in it."""

    def __init__(self, plan: DataPlan) -> None:
        self.plan, self.mixture = plan, plan.mixture()
        self.reader = SampleReader(plan.entries())
        self.tasks = load_tasks(*plan.task_files)
        self.processor = plan.model.load_processor()
        self.features = None if plan.features is None else _feature_reader(plan.features)

    def batches(self, steps: Sequence[int], rank: int, world_size: int) -> Iterator[list[Batch]]:
        """Yields worker `rank`'s part of each step: every `world_size`-th pick, cut into batches of similar length.

        The samples of all the steps are read in one call.
        """
        picks = [self.mixture.batch(step)[rank::world_size] for step in steps]
        samples = iter(self.reader.read([(pick.dataset, pick.index) for step in picks for pick in step]))
        for step in picks:
            yield self._cut(step, list(islice(samples, len(step))))

    def _cut(self, picks: list[SampleRef], samples: list[Sample]) -> list[Batch]:
        from mgpt.data.packing import SINGLE_ROWS
        from mgpt.training.batch import cut_by_length, cut_packed

        conversations = [self._render(pick, sample) for pick, sample in zip(picks, samples, strict=True)]
        images = [image for sample in samples for image in sample.images]
        tensors = self.processor(
            images=[image.data for image in images] if images and self.features is None else None,
            conversations=conversations,
            format=self.plan.format,
            labels=True,
            padding_side="right",
        )
        if images and self.features is not None:
            tensors["image_features"] = self.features.read([bytes.fromhex(image.sha256) for image in images])
        ids = [f"{sample.dataset}:{sample.id}" for sample in samples]
        cut = (tensors, ids, [len(sample.images) for sample in samples], self.plan.micro_batch_size)
        if self.plan.pack_tokens is None:
            return cut_by_length(*cut)
        single = self.plan.model.loading.get("attn_implementation") in SINGLE_ROWS
        return cut_packed(*cut, self.plan.pack_tokens, single=single)

    def _render(self, pick: SampleRef, sample: Sample) -> list[dict[str, str]]:
        rng: random.Random = sample_rng(self.plan.seed, pick.position)
        return render(sample, rng, task=self.plan.tasks.get(pick.dataset), tasks=self.tasks)


def _feature_reader(folder: str) -> FeatureReader:
    from mgpt.data.feature_packs import FeatureReader

    return FeatureReader(folder)


_BUILDERS: dict[str, BatchBuilder] = {}  # of this process, by the plan's digest; Ray reuses a process for many tasks


def batch_builder(plan: DataPlan) -> BatchBuilder:
    """Returns this process's builder of a plan. A call ahead of the first step prepares a process for the tasks."""
    import torch

    torch.set_num_threads(1)  # the other cores belong to the training workers
    if plan.digest not in _BUILDERS:
        _BUILDERS.clear()
        _BUILDERS[plan.digest] = BatchBuilder(plan)
    return _BUILDERS[plan.digest]


def _build(table: pa.Table, plan: DataPlan, rank: int, world_size: int) -> pa.Table:
    builder, steps = batch_builder(plan), table["step"].to_pylist()
    blobs = [[batch.to_bytes() for batch in batches] for batches in builder.batches(steps, rank, world_size)]
    return pa.table({"step": steps, "batches": pa.array(blobs, type=pa.list_(pa.large_binary()))})


def worker_dataset(plan: DataPlan, start: int, rank: int, world_size: int, cpus: float) -> ray.data.Dataset:
    """Returns the steps from `start` on as worker `rank` sees them: rows `{step, batches}`, in order."""
    per_task = max(1, _SAMPLES_PER_TASK * world_size // plan.global_batch_size)
    steps = range(start, plan.steps)
    blocks = [pa.table({"step": steps[at : at + per_task]}) for at in range(0, len(steps), per_task)]
    dataset = ray.data.from_arrow(blocks)
    dataset.context.execution_options.preserve_order = True
    dataset.context.custom_execution_callback_classes.append(PollThrottle)  # type: ignore[arg-type]
    build = partial(_build, plan=plan, rank=rank, world_size=world_size)
    return dataset.map_batches(build, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=cpus)


class MixtureDataConfig(ray.train.DataConfig):
    """Gives each worker its own dataset of the plan, from the step of the last committed checkpoint on.

    Ray calls `configure` at every start of a worker group: after a failure, and when the number of workers changes.
    """

    def __init__(self, plan: DataPlan, run_uri: str, cpus: float) -> None:
        super().__init__()
        self._plan, self._run_uri, self._cpus = plan, run_uri, cpus

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        """Returns one dataset per worker; none for a run that has all its steps."""
        start = CheckpointStore(self._run_uri).latest_step()
        if start >= self._plan.steps:
            return [{} for _ in range(world_size)]
        return [
            {DATASET: worker_dataset(self._plan, start, rank, world_size, self._cpus).iterator()}
            for rank in range(world_size)
        ]


def stream(shard: ray.data.DataIterator) -> Iterator[StepBatches]:
    """Yields the steps of a worker's dataset."""
    from mgpt.training.batch import Batch

    tables: Any = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)  # type: ignore[arg-type]
    for table in tables:
        for step, blobs in zip(table["step"].to_pylist(), table["batches"], strict=True):
            yield step, [Batch.from_bytes(blob.as_py()) for blob in blobs.values]
