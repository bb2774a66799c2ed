import csv
import json

import pyarrow.parquet as pq
import pytest

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.evaluation.evaluator import score_answers, select_examples
from mgpt.evaluation.metrics import TASKS
from mgpt.evaluation.report import FILES, markdown_table, text_table, write_report
from mgpt.inference.types import GenerationOutput


@pytest.fixture(scope="module")
def evaluation(samples):
    task = {"examples": 20, "early_examples": 10}
    settings = ModelEvaluationSettings(
        format="minigpt-v2", checkpoints=("pretrain", "instruct"), tasks=dict.fromkeys(TASKS, task), resamples=200
    )
    examples = select_examples(settings, samples)
    answers = {}
    for members in examples.values():
        for one in members:
            answers[one.id] = {
                "instruct": GenerationOutput(one.references[0], True),
                "pretrain": GenerationOutput("red", False),
            }
        del answers[members[0].id]["pretrain"]
    return score_answers("minigpt-v2", settings, examples, answers)


def test_files(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["missing"] == len(TASKS)
    score = metrics["scores"]["instruct"]["rec_accuracy"]
    assert score.keys() == {"value", "low", "high", "chance", "n", "missing", "unparsed", "higher_is_better"}
    assert (score["value"], score["n"]) == (1.0, 20)
    assert "captioning_words" in metrics["descriptive"]["instruct"]
    assert "captioning_words" not in metrics["scores"]["instruct"]
    assert set(json.loads((tmp_path / "slices.json").read_text())["instruct"]["rec_accuracy"]["size"]) <= {
        "small",
        "large",
    }


def test_predictions_have_question_answer_and_score(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert len(rows) == len(TASKS) * (20 + 10)
    assert sum(row["answer"] is None for row in rows) == len(TASKS)
    row = next(row for row in rows if row["task"] == "rec" and row["checkpoint"] == "instruct")
    assert row["answer"] in row["references"]
    assert json.loads(row["parts"])["rec_accuracy"] == [1.0, 1.0]


def test_same_evaluation_gives_same_bytes(evaluation, tmp_path):
    for name in ("first", "second"):
        write_report(evaluation, tmp_path / name)
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in FILES)


def test_tables_have_a_column_for_each_checkpoint(evaluation):
    line = next(line for line in text_table(evaluation).splitlines() if line.startswith("rec_accuracy"))
    assert line.split() == [
        "rec_accuracy",
        "0.00",
        "[0.00,",
        "0.00]",
        "1.00",
        "[1.00,",
        "1.00]",
        line.split()[7],
        "10/20",
        "0",
        "0",
    ]
    markdown = markdown_table(evaluation).splitlines()
    assert markdown[0].startswith("| metric | pretrain | instruct | chance | n |")
    assert len({line.count("|") for line in markdown}) == 1


def test_csv_has_a_row_for_each_score(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(rows) == sum(len(scores) for scores in evaluation.scores.values())
