"""The `evaluate` stage: from held-out samples to scores and a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.data.shards import scan_samples
from mgpt.data.tasks import Task
from mgpt.data.types import Sample
from mgpt.evaluation.evaluator import evaluate_checkpoints
from mgpt.evaluation.report import write_report
from mgpt.evaluation.types import Evaluation
from mgpt.inference.types import GenerationBackend
from mgpt.storage import Manifest


@dataclass(frozen=True)
class EvaluateRequest:
    """Inputs of an evaluation.

    Attributes:
        curated: manifest of the `curate` stage.
        backbones: name -> folder or URI.
        checkpoints: name -> folder written by `save_trainable`, in the order of training and without `untrained`.
        out: folder of the report.
        tasks: data tasks by name; None for the shipped ones.
    """

    model_name: str
    settings: ModelEvaluationSettings
    curated: Manifest
    backbones: Mapping[str, str | Path]
    checkpoints: Mapping[str, Path]
    out: Path
    tasks: Mapping[str, Task] | None = None


def evaluate(request: EvaluateRequest, answer_all: GenerationBackend) -> Evaluation:
    """Evaluates every checkpoint and writes `report.FILES` into `request.out`.

    Args:
        answer_all: generation backend, this process or actors on a cluster (`mgpt.execution.batch_inference`).

    Raises:
        ValueError: a task has no held-out examples, a checkpoint has no weights, or an answer did not come back (the
        report is written
            first).
    """
    settings = request.settings
    evaluation = evaluate_checkpoints(
        request.model_name,
        settings,
        list(read_samples(request.curated, settings.splits, settings.datasets)),
        request.backbones,
        request.checkpoints,
        answer_all=answer_all,
        tasks=request.tasks,
    )
    write_report(evaluation, request.out)
    if evaluation.missing:
        raise ValueError(
            f"evaluate.{request.model_name}: {evaluation.missing} answers are missing; see the rows with answer = null "
            f"in {request.out / 'predictions.parquet'}, and run the stage again"
        )
    return evaluation


def read_samples(curated: Manifest, splits: Sequence[str], datasets: Sequence[str] = ()) -> Iterator[Sample]:
    """Yields the samples of the named splits and datasets (of all datasets where none is named), shard by shard.

    Raises:
        ValueError: no shard has such samples; names the datasets and splits there are.
    """
    entries = [
        entry
        for entry in curated.entries
        if entry.meta.get("split") in splits and (not datasets or entry.meta.get("dataset") in datasets)
    ]
    if not entries:
        have = sorted({f"{entry.meta.get('dataset')}/{entry.meta.get('split')}" for entry in curated.entries})
        requested = f"splits {', '.join(splits)}" + (f" of {', '.join(datasets)}" if datasets else "")
        raise ValueError(f"curated data has no shards of {requested}; it has {', '.join(have) or 'none'}")
    for entry in sorted(entries, key=lambda entry: entry.name):
        yield from scan_samples(entry.uri)
