import dataclasses

import numpy as np
import pytest
from PIL import Image

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.evaluation.evaluator import score_answers, select_examples
from mgpt.evaluation.types import Evaluation
from mgpt.inference.types import GenerationOutput
from mgpt.reporting.visualize import PREDICTED_COLOUR, SIDE, TRUE_COLOUR, choose, draw_panel, write_gallery


@pytest.fixture(scope="module")
def evaluation(samples):
    task = {"examples": 12, "early_examples": 12}
    settings = ModelEvaluationSettings(
        format="minigpt-v2", checkpoints=("instruct",), tasks={"rec": task, "vqa": task}, resamples=100
    )
    examples = select_examples(settings, samples)
    answers = {
        one.id: {"instruct": GenerationOutput(one.references[0] if number % 2 else "{<0><0><9><9>}", True)}
        for members in examples.values()
        for number, one in enumerate(members)
    }
    return score_answers("minigpt-v2", settings, examples, answers)


def has(image, colour):
    return bool((np.asarray(image) == colour).all(axis=-1).any())


def test_gallery_shows_boxes_at_readable_size(evaluation, tmp_path):
    write_gallery(evaluation, 8, tmp_path / "page.png")
    page = Image.open(tmp_path / "page.png")
    assert page.width >= 4 * SIDE
    assert page.height >= 2 * SIDE
    assert has(page, TRUE_COLOUR)
    assert has(page, PREDICTED_COLOUR)


def test_gallery_has_every_task_and_both_outcomes(evaluation):
    chosen = choose(evaluation, 8)
    assert [prediction.example.task for prediction in chosen] == ["rec"] * 4 + ["vqa"] * 4
    assert {prediction.score.contributions["rec_accuracy"].numerator for prediction in chosen[:4]} == {0.0, 1.0}


def test_panel_draws_the_true_box_in_its_position(evaluation):
    prediction = next(
        p
        for p in evaluation.predictions
        if p.example.task == "rec" and p.score.contributions["rec_accuracy"].numerator == 0
    )
    drawn = np.asarray(draw_panel(prediction))[:SIDE]
    rows, columns = np.nonzero((drawn == TRUE_COLOUR).all(axis=-1))
    box = prediction.example.phrases[0].boxes[0]
    scale = SIDE / prediction.example.width
    assert abs(columns.min() - box.x1 * scale) <= 4
    assert abs(rows.max() - box.y2 * scale) <= 4


def test_missing_answer_is_drawn(evaluation):
    assert draw_panel(dataclasses.replace(evaluation.predictions[0], answer=None)).width == SIDE


def test_empty_gallery_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no predictions"):
        write_gallery(Evaluation("minigpt-v2", {"instruct": {}}, []), 4, tmp_path / "page.png")
    assert not (tmp_path / "page.png").exists()
