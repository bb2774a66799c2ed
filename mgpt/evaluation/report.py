"""The files of an evaluation: metrics for DVC, predictions, and the score table as text, markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.evaluation.types import Evaluation, Prediction, Score
from mgpt.storage import write_atomic

FILES = ("metrics.json", "slices.json", "predictions.parquet", "scores.txt", "scores.md", "scores.csv")


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Writes `FILES` into `out`.

    - `metrics.json`: `{"scores": {checkpoint: {metric: {value, low, high, chance, n, missing, unparsed,
      higher_is_better}}}, "descriptive": the same of metrics without a better direction, "missing": count}`;
    - `slices.json`: `{checkpoint: {metric: {slice: {value of the slice: {value, low, high, n}}}}}`;
    - `predictions.parquet`: one row an answer;
    - `scores.txt`, `scores.md`: the headline metrics as a table;
    - `scores.csv`: one row a checkpoint and metric, for DVC plots.
    """
    out.mkdir(parents=True, exist_ok=True)
    metrics = {
        "scores": {name: _numbers(scores, descriptive=False) for name, scores in evaluation.scores.items()},
        "descriptive": {name: _numbers(scores, descriptive=True) for name, scores in evaluation.scores.items()},
        "missing": evaluation.missing,
    }
    slices = {
        name: {metric: score.slices for metric, score in scores.items()} for name, scores in evaluation.scores.items()
    }
    write_atomic(out / "metrics.json", _json(metrics))
    write_atomic(out / "slices.json", _json(slices))
    write_atomic(out / "predictions.parquet", _parquet(evaluation))
    write_atomic(out / "scores.txt", (text_table(evaluation) + "\n").encode())
    write_atomic(out / "scores.md", (markdown_table(evaluation) + "\n").encode())
    write_atomic(out / "scores.csv", _csv(evaluation).encode())


def _numbers(scores: Mapping[str, Score], descriptive: bool) -> dict[str, dict[str, object]]:
    """Returns metric -> its numbers, rounded to six decimals, of the descriptive metrics or of the others."""
    hidden = ("slices", "headline", "descriptive")
    return {
        metric: {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in asdict(score).items()
            if key not in hidden
        }
        for metric, score in scores.items()
        if score.descriptive == descriptive
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _parquet(evaluation: Evaluation) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_row(prediction) for prediction in evaluation.predictions]), buffer)
    return buffer.getvalue()


def _row(prediction: Prediction) -> dict[str, object]:
    example, answer = prediction.example, prediction.answer
    parts = {name: [one.numerator, one.denominator] for name, one in prediction.score.contributions.items()}
    return {
        "checkpoint": prediction.checkpoint,
        "task": example.task,
        "dataset": example.dataset,
        "key": example.key,
        "item": example.id,
        "question": example.question,
        "answer": None if answer is None else answer.text,
        "finished": None if answer is None else answer.finished,
        "parsed": prediction.score.parsed,
        "references": list(example.references),
        "objects": list(example.objects),
        "parts": json.dumps(parts, sort_keys=True),
    }


def headlines(evaluation: Evaluation) -> list[str]:
    """Returns the names of the metrics in the tables, in the order of the tasks."""
    return list(
        dict.fromkeys(name for scores in evaluation.scores.values() for name, score in scores.items() if score.headline)
    )


def format_score(score: Score | None) -> str:
    """Formats a score as `0.62 [0.57, 0.66]`, `-` where there is none."""
    return "-" if score is None else f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def _table(evaluation: Evaluation) -> list[list[str]]:
    checkpoints = list(evaluation.scores.values())
    rows = [["metric", *evaluation.scores, "chance", "n", "unparsed", "missing"]]
    for metric in headlines(evaluation):
        last = checkpoints[-1][metric]
        name = metric if last.higher_is_better else f"{metric} (less is better)"
        chance = "-" if last.chance is None else f"{last.chance:.2f}"
        counts = dict.fromkeys(str(scores[metric].n) for scores in checkpoints if metric in scores)
        cells = [format_score(scores.get(metric)) for scores in checkpoints]
        rows.append([name, *cells, chance, "/".join(counts), str(last.unparsed), str(last.missing)])
    return rows


def text_table(evaluation: Evaluation) -> str:
    """Formats the scores of all checkpoints next to each other, for a terminal."""
    rows = _table(evaluation)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    head, *body = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    title = f"{evaluation.model_name}: held-out scores with 95 % intervals"
    return "\n".join([title, head, "-" * len(head), *body])


def markdown_table(evaluation: Evaluation) -> str:
    """Formats the same table in markdown."""
    rows = _table(evaluation)
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _csv(evaluation: Evaluation) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["checkpoint", "metric", "value", "low", "high", "chance", "n"])
    for name, scores in evaluation.scores.items():
        for metric, score in scores.items():
            chance = "" if score.chance is None else round(score.chance, 6)
            numbers = (round(score.value, 6), round(score.low, 6), round(score.high, 6))
            writer.writerow([name, metric, *numbers, chance, score.n])
    return buffer.getvalue()
