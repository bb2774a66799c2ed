import csv
import json

import pyarrow.parquet as pq
import pytest

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.evaluation.evaluator import choose_items, score_answers
from mgpt.evaluation.metrics import TASKS
from mgpt.evaluation.report import FILES, markdown_table, text_table, write_report
from mgpt.inference.types import Answer


@pytest.fixture(scope="module")
def evaluation(samples):
    asks = {"examples": 20, "early_examples": 10}
    settings = ModelEvaluationSettings(
        format="minigpt-v2", checkpoints=("pretrain", "instruct"), tasks=dict.fromkeys(TASKS, asks), resamples=200
    )
    items = choose_items(settings, samples)
    answers = {
        item.id: {"instruct": Answer(item.references[0], True)} | ({"pretrain": Answer("red", False)} if place else {})
        for members in items.values()
        for place, item in enumerate(members)
    }
    return score_answers("minigpt-v2", settings, items, answers)


def test_files(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["missing"] == len(TASKS)
    score = metrics["scores"]["instruct"]["refer_accuracy"]
    assert score.keys() == {"value", "low", "high", "chance", "n", "missing", "unparsed", "higher_is_better"}
    assert (score["value"], score["n"]) == (1.0, 20)
    assert "caption_words" in metrics["descriptive"]["instruct"]
    assert "caption_words" not in metrics["scores"]["instruct"]
    assert set(json.loads((tmp_path / "slices.json").read_text())["instruct"]["refer_accuracy"]["size"]) <= {
        "small",
        "large",
    }


def test_predictions_tell_question_answer_and_worth(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert len(rows) == len(TASKS) * (20 + 10)
    assert sum(row["answer"] is None for row in rows) == len(TASKS)
    row = next(row for row in rows if row["task"] == "refer" and row["checkpoint"] == "instruct")
    assert row["answer"] in row["references"]
    assert json.loads(row["parts"])["refer_accuracy"] == [1.0, 1.0]


def test_the_same_evaluation_gives_the_same_bytes(evaluation, tmp_path):
    for name in ("first", "second"):
        write_report(evaluation, tmp_path / name)
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in FILES)


def test_tables_show_checkpoints_side_by_side(evaluation):
    line = next(line for line in text_table(evaluation).splitlines() if line.startswith("refer_accuracy"))
    assert line.split() == [
        "refer_accuracy",
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


def test_the_plot_has_a_row_for_each_score(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(rows) == sum(len(scores) for scores in evaluation.scores.values())
