import dataclasses

import numpy as np
import pytest
from PIL import Image

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.evaluation.evaluator import Evaluation, choose_items, score_answers
from mgpt.inference.types import Answer
from mgpt.reporting.visualize import PREDICTED_COLOUR, SIDE, TRUE_COLOUR, choose, panel, write_gallery


@pytest.fixture(scope="module")
def evaluation(samples):
    asks = {"examples": 12, "early_examples": 12}
    settings = ModelEvaluationSettings(
        format="minigpt-v2", checkpoints=("instruct",), tasks={"refer": asks, "vqa": asks}, resamples=100
    )
    items = choose_items(settings, samples)
    answers = {
        item.id: {"instruct": Answer(item.references[0] if place % 2 else "{<0><0><9><9>}", True)}
        for m in items.values()
        for place, item in enumerate(m)
    }
    return score_answers("minigpt-v2", settings, items, answers)


def has(image, colour):
    return bool((np.asarray(image) == colour).all(axis=-1).any())


def test_the_page_is_a_image_of_readable_size(evaluation, tmp_path):
    write_gallery(evaluation, 8, tmp_path / "page.png")
    page = Image.open(tmp_path / "page.png")
    assert page.width >= 4 * SIDE
    assert page.height >= 2 * SIDE
    assert has(page, TRUE_COLOUR)
    assert has(page, PREDICTED_COLOUR)


def test_every_task_and_both_outcomes_are_shown(evaluation):
    chosen = choose(evaluation, 8)
    assert [prediction.item.task for prediction in chosen] == ["refer"] * 4 + ["vqa"] * 4
    assert {prediction.judgement.parts["refer_accuracy"].numerator for prediction in chosen[:4]} == {0.0, 1.0}


def test_a_panel_marks_the_true_box_where_it_is(evaluation):
    prediction = next(
        p
        for p in evaluation.predictions
        if p.item.task == "refer" and p.judgement.parts["refer_accuracy"].numerator == 0
    )
    drawn = np.asarray(panel(prediction))[:SIDE]
    rows, columns = np.nonzero((drawn == TRUE_COLOUR).all(axis=-1))
    box = prediction.item.phrases[0].boxes[0]
    scale = SIDE / prediction.item.width
    assert abs(columns.min() - box.x1 * scale) <= 4
    assert abs(rows.max() - box.y2 * scale) <= 4


def test_a_missing_answer_is_drawn_too(evaluation):
    assert panel(dataclasses.replace(evaluation.predictions[0], answer=None)).width == SIDE


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no predictions to draw"):
        write_gallery(Evaluation("minigpt-v2", {"instruct": {}}, []), 4, tmp_path / "page.png")
    assert not (tmp_path / "page.png").exists()
