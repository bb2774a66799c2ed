import pytest

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.evaluation.evaluator import choose_items, run_suite, score_answers
from mgpt.evaluation.metrics import TASKS
from mgpt.inference.types import Answer


def settings(**more):
    asks = {"examples": 30, "early_examples": 10, "max_new_tokens": 6}
    return ModelEvaluationSettings(
        **{
            "format": "minigpt-v2",
            "checkpoints": ("untrained", "instruct"),
            "tasks": dict.fromkeys(TASKS, asks),
            "resamples": 200,
        }
        | more
    )


def answers_of(chosen, items, text_of):
    return {item.id: dict.fromkeys(chosen.checkpoints, text_of(item)) for members in items.values() for item in members}


def test_an_oracle_scores_exactly_one_hundred(samples):
    chosen = settings()
    items = choose_items(chosen, samples)
    scores = score_answers(
        "oracle", chosen, items, answers_of(chosen, items, lambda item: Answer(item.references[0], True))
    ).scores["instruct"]
    for name, score in scores.items():
        perfect = 1.0 if score.higher_is_better else 0.0
        if not score.descriptive and name not in ("refer_mean_overlap", "identify_word_overlap"):
            assert score.value == score.low == score.high == perfect, name
        assert (score.missing, score.unparsed) == (0, 0)
    assert scores["refer_mean_overlap"].value > 0.85  # what rounding to the grid of 100 leaves
    assert scores["refer_accuracy"].chance < 0.4


def test_truths_dealt_to_other_items_are_at_chance(samples):
    """Keys that do not fit give low scores, not errors, in the original: here they give what chance gives."""
    chosen = settings()
    items = choose_items(chosen, samples)
    shifted = {one.id: items["refer"][i - 1].references[0] for i, one in enumerate(items["refer"])}
    answers = answers_of(chosen, items, lambda item: Answer(shifted.get(item.id, "x"), True))
    score = score_answers("shifted", chosen, items, answers).scores["instruct"]["refer_accuracy"]
    assert score.value < 0.3
    assert score.low <= score.chance


def test_an_answer_that_did_not_come_is_missing_and_wrong(samples):
    chosen = settings(tasks={"refer": {"examples": 10, "early_examples": 10}})
    items = choose_items(chosen, samples)
    answers = answers_of(chosen, items, lambda item: Answer(item.references[0], True))
    del answers[items["refer"][0].id]["instruct"]
    found = score_answers("one gone", chosen, items, answers)
    assert found.missing == 1
    assert (found.scores["instruct"]["refer_accuracy"].value, found.scores["instruct"]["refer_accuracy"].missing) == (
        0.9,
        1,
    )
    assert found.scores["untrained"]["refer_accuracy"].value == 1.0


def test_early_checkpoints_are_asked_a_part_of_the_same_items(samples, backbones, checkpoints):
    chosen = settings(checkpoints=("untrained", "pretrain", "instruct"))
    found = run_suite("minigpt-v2", chosen, samples, backbones, checkpoints)
    asked = {
        name: [p.item.id for p in found.predictions if p.checkpoint == name and p.item.task == "vqa"]
        for name in chosen.checkpoints
    }
    assert len(asked["instruct"]) == 30
    assert asked["untrained"] == asked["pretrain"] == asked["instruct"][:10]
    assert found.missing == 0
    assert all(
        score.value in (0.0, 1.0) or score.low <= score.value <= score.high
        for scores in found.scores.values()
        for score in scores.values()
    )


def test_a_task_without_items_is_refused_by_name(samples):
    with pytest.raises(ValueError, match=r"no held-out items of identify, vqa .*curated tasks there are: caption"):
        choose_items(settings(), [sample for sample in samples if sample.task not in ("identify", "vqa")])
