"""What an evaluation leaves behind: metrics for DVC, predictions, and the table as text, markdown and a CSV plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.evaluation.evaluator import Evaluation, Prediction
from mgpt.evaluation.scoring import Score
from mgpt.storage import write_atomic

FILES = ("metrics.json", "slices.json", "predictions.parquet", "scores.txt", "scores.md", "scores.csv")


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write `FILES` into `out`.

    - `metrics.json`: `{"scores": {checkpoint: {metric: {value, low, high, chance, n, missing, unparsed, higher_is_better}}}, "missing":
      count}`;
    - `slices.json`: `{checkpoint: {metric: {slice: {value of the slice: {value, low, high, n}}}}}`;
    - `predictions.parquet`: one row an answer;
    - `scores.csv`: one row a checkpoint and metric, for DVC plots.
    """
    out.mkdir(parents=True, exist_ok=True)
    scores = {name: _chosen(found, descriptive=False) for name, found in evaluation.scores.items()}
    descriptive = {name: _chosen(found, descriptive=True) for name, found in evaluation.scores.items()}
    slices = {
        name: {metric: score.slices for metric, score in scores.items()} for name, scores in evaluation.scores.items()
    }
    write_atomic(
        out / "metrics.json", _json({"scores": scores, "descriptive": descriptive, "missing": evaluation.missing})
    )
    write_atomic(out / "slices.json", _json(slices))
    write_atomic(out / "predictions.parquet", _parquet(evaluation))
    write_atomic(out / "scores.txt", (text_table(evaluation) + "\n").encode())
    write_atomic(out / "scores.md", (markdown_table(evaluation) + "\n").encode())
    write_atomic(out / "scores.csv", _plot(evaluation).encode())


def _chosen(scores: Mapping[str, Score], descriptive: bool) -> dict[str, dict[str, object]]:
    return {metric: _numbers(score) for metric, score in scores.items() if score.descriptive == descriptive}


def _numbers(score: Score) -> dict[str, object]:
    hidden = ("slices", "headline", "descriptive")
    return {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in score.as_dict().items()
        if key not in hidden
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _parquet(evaluation: Evaluation) -> bytes:
    rows = [_row(prediction) for prediction in evaluation.predictions]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _row(prediction: Prediction) -> dict[str, object]:
    item, answer = prediction.item, prediction.answer
    parts = {name: [part.numerator, part.denominator] for name, part in prediction.judgement.parts.items()}
    return {
        "checkpoint": prediction.checkpoint,
        "task": item.task,
        "dataset": item.dataset,
        "key": item.key,
        "item": item.id,
        "question": item.question,
        "answer": None if answer is None else answer.text,
        "finished": None if answer is None else answer.finished,
        "parsed": prediction.judgement.parsed,
        "references": list(item.references),
        "objects": list(item.objects),
        "parts": json.dumps(parts, sort_keys=True),
    }


def headlines(evaluation: Evaluation) -> list[str]:
    """Names of the metrics that stand in the tables, in the order of the tasks."""
    return list(
        dict.fromkeys(name for scores in evaluation.scores.values() for name, score in scores.items() if score.headline)
    )


def cell(score: Score | None) -> str:
    """`0.62 [0.57, 0.66]`."""
    return "-" if score is None else f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def _table(evaluation: Evaluation) -> list[list[str]]:
    names = list(evaluation.scores)
    rows = [["metric", *names, "chance", "n", "unparsed", "missing"]]
    for metric in headlines(evaluation):
        last = evaluation.scores[names[-1]][metric]
        arrow = "" if last.higher_is_better else " (less is better)"
        chance = "-" if last.chance is None else f"{last.chance:.2f}"
        counts = dict.fromkeys(
            str(evaluation.scores[name][metric].n) for name in names if metric in evaluation.scores[name]
        )
        rows.append(
            [
                metric + arrow,
                *(cell(evaluation.scores[name].get(metric)) for name in names),
                chance,
                "/".join(counts),
                str(last.unparsed),
                str(last.missing),
            ]
        )
    return rows


def text_table(evaluation: Evaluation) -> str:
    """The scores of all checkpoints side by side, for a terminal."""
    rows = _table(evaluation)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [f"{evaluation.model_name}: held-out scores with 95 % intervals", lines[0], "-" * len(lines[0]), *lines[1:]]
    )


def markdown_table(evaluation: Evaluation) -> str:
    """The same table in markdown."""
    head, *body = [f"| {' | '.join(row)} |" for row in _table(evaluation)]
    return "\n".join([head, "|" + " --- |" * len(_table(evaluation)[0]), *body])


def _plot(evaluation: Evaluation) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["checkpoint", "metric", "value", "low", "high", "chance", "n"])
    for name, scores in evaluation.scores.items():
        for metric, score in scores.items():
            chance = "" if score.chance is None else round(score.chance, 6)
            writer.writerow(
                [name, metric, round(score.value, 6), round(score.low, 6), round(score.high, 6), chance, score.n]
            )
    return buffer.getvalue()
