"""The `evaluate` stage's body: held-out samples in, scores and images out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.data.tasks import Task
from mgpt.data.types import Sample
from mgpt.evaluation.evaluator import Evaluation, run_suite
from mgpt.evaluation.report import write_report
from mgpt.inference.types import GenerationBackend
from mgpt.reporting.visualize import write_gallery
from mgpt.storage import Manifest, Store

IMAGES = "images.png"


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate.

    `checkpoints`: name -> folder that `save_trainable` wrote, in the order of training and without `untrained`. `backbones`: name -> folder or
    URI. `curated`: manifest of the `curate` stage. `out`: where the report goes. `tasks`: the tasks by name where a user added some.
    """

    model_name: str
    settings: ModelEvaluationSettings
    store: Store
    curated: Manifest
    backbones: Mapping[str, str | Path]
    checkpoints: Mapping[str, Path]
    out: Path
    tasks: Mapping[str, Task] | None = None


def evaluate(request: EvaluateRequest, answer_all: GenerationBackend) -> Evaluation:
    """Ask every checkpoint, score, and write `report.FILES` and `images.png` into `request.out`.

    `answer_all` is who answers: this process, or actors on a cluster (`mgpt.execution.batch_inference`).

    Raises ValueError when a task has no held-out items, a checkpoint has no weights, or an answer did not come back (the report is written
    first).
    """
    settings = request.settings
    samples = list(read_samples(request.store, request.curated, settings.splits, settings.datasets))
    evaluation = run_suite(
        request.model_name,
        settings,
        samples,
        request.backbones,
        request.checkpoints,
        answer_all=answer_all,
        tasks=request.tasks,
    )
    write_report(evaluation, request.out)
    if settings.images:
        write_gallery(evaluation, settings.images, request.out / IMAGES)
    if evaluation.missing:
        raise ValueError(
            f"evaluate.{request.model_name}: {evaluation.missing} answers did not come back; see answer = null in "
            f"{request.out / 'predictions.parquet'}"
        )
    return evaluation


def read_samples(
    store: Store, curated: Manifest, splits: Sequence[str], datasets: Sequence[str] = ()
) -> Iterator[Sample]:
    """Samples of the named splits (and datasets, unless none is named), shard by shard.

    Raises ValueError when no shard has such samples, naming what there is.
    """
    entries = [
        entry
        for entry in curated.entries
        if entry.meta.get("split") in splits and (not datasets or entry.meta.get("dataset") in datasets)
    ]
    if not entries:
        have = sorted({f"{entry.meta.get('dataset')}/{entry.meta.get('split')}" for entry in curated.entries})
        wanted = f"splits {', '.join(splits)}" + (f" of {', '.join(datasets)}" if datasets else "")
        raise ValueError(f"the curated data has no shards for {wanted}; it has {', '.join(have) or 'nothing'}")
    for entry in sorted(entries, key=lambda entry: entry.name):
        for row in pq.read_table(io.BytesIO(store.read(entry.uri))).to_pylist():
            yield Sample.from_row(row)
