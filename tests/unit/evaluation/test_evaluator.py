import pytest

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.evaluation.evaluator import evaluate_checkpoints, score_answers, select_examples
from mgpt.evaluation.metrics import TASKS
from mgpt.inference.engine import generate_locally
from mgpt.inference.types import GenerationOutput


def settings(**more):
    task = {"examples": 30, "early_examples": 10, "max_new_tokens": 6}
    return ModelEvaluationSettings(
        **{
            "format": "minigpt-v2",
            "checkpoints": ("untrained", "instruct"),
            "tasks": dict.fromkeys(TASKS, task),
            "resamples": 200,
        }
        | more
    )


def answer_each(chosen, examples, text_of):
    return {
        one.id: dict.fromkeys(chosen.checkpoints, GenerationOutput(text_of(one), True))
        for members in examples.values()
        for one in members
    }


def reference(example):
    return example.references[0]


def test_oracle_scores_exactly_one(samples):
    chosen = settings()
    examples = select_examples(chosen, samples)
    answers = answer_each(chosen, examples, reference)
    scores = score_answers("oracle", chosen, examples, answers).scores["instruct"]
    for name, score in scores.items():
        perfect = 1.0 if score.higher_is_better else 0.0
        if not score.descriptive and name not in ("rec_mean_iou", "reg_word_overlap"):
            assert score.value == score.low == score.high == perfect, name
        assert (score.missing, score.unparsed) == (0, 0)
    assert scores["rec_mean_iou"].value > 0.85  # less than 1 by rounding to the grid of 100
    assert scores["rec_accuracy"].chance < 0.4


def test_references_of_other_examples_score_at_chance(samples):
    """Mismatched keys give low scores instead of errors in the original code; here they score at chance."""
    chosen = settings()
    examples = select_examples(chosen, samples)
    shifted = {one.id: reference(examples["rec"][i - 1]) for i, one in enumerate(examples["rec"])}
    answers = answer_each(chosen, examples, lambda one: shifted.get(one.id, "x"))
    score = score_answers("shifted", chosen, examples, answers).scores["instruct"]["rec_accuracy"]
    assert score.value < 0.3
    assert score.low <= score.chance


def test_missing_answer_is_counted_and_wrong(samples):
    chosen = settings(tasks={"rec": {"examples": 10, "early_examples": 10}})
    examples = select_examples(chosen, samples)
    answers = answer_each(chosen, examples, reference)
    del answers[examples["rec"][0].id]["instruct"]
    found = score_answers("one missing", chosen, examples, answers)
    score = found.scores["instruct"]["rec_accuracy"]
    assert (found.missing, score.value, score.missing) == (1, 0.9, 1)
    assert found.scores["untrained"]["rec_accuracy"].value == 1.0


def test_early_checkpoints_get_a_prefix_of_the_examples(samples, backbones, checkpoints):
    chosen = settings(checkpoints=("untrained", "pretrain", "instruct"))
    found = evaluate_checkpoints("minigpt-v2", chosen, samples, backbones, checkpoints, answer_all=generate_locally)
    ids = {
        name: [p.example.id for p in found.predictions if p.checkpoint == name and p.example.task == "vqa"]
        for name in chosen.checkpoints
    }
    assert len(ids["instruct"]) == 30
    assert ids["untrained"] == ids["pretrain"] == ids["instruct"][:10]
    assert found.missing == 0
    assert all(
        score.value in (0.0, 1.0) or score.low <= score.value <= score.high
        for scores in found.scores.values()
        for score in scores.values()
    )


def test_tasks_without_examples_are_refused_by_name(samples):
    with pytest.raises(ValueError, match=r"reg, vqa in splits test.*curated tasks: caption"):
        select_examples(settings(), [sample for sample in samples if sample.task not in ("identify", "vqa")])
