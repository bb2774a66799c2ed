import pytest

from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.metrics.captioning import captioning_family, description_family
from mgpt.evaluation.scoring import score_examples
from mgpt.evaluation.types import Example
from mgpt.inference.types import GenerationOutput

SHAPES = load_vocabulary("shapes")


def example(*objects, task="captioning"):
    messages = ({"role": "user", "content": "x"},)
    return Example("i", "i", task, "shapes", b"", 64, 64, messages, ("ref",), objects=objects)


def scores_of(family, examples, texts):
    answers = [GenerationOutput(text, True) for text in texts]
    scores, _ = score_examples(family, examples, answers, chance={}, resamples=200, seed=0)
    return {name: score.value for name, score in scores.items()}


def test_recall_and_both_hallucination_rates():
    examples = [example("red circle", "blue square"), example("green cross")]
    texts = ["a red circle, a red circle and a yellow cross", "a green cross"]
    found = scores_of(captioning_family(SHAPES), examples, texts)
    assert found["captioning_object_recall"] == pytest.approx(2 / 3)
    assert found["captioning_hallucinated_objects"] == pytest.approx(1 / 4)
    assert found["captioning_with_hallucination"] == pytest.approx(1 / 2)
    assert found["captioning_words"] == pytest.approx((10 + 3) / 2)


def test_empty_answer_scores_worst():
    found = scores_of(captioning_family(SHAPES), [example("red circle")], [""])
    assert found["captioning_hallucinated_objects"] == 1.0
    assert found["captioning_object_recall"] == 0.0


def test_descriptions_have_degeneration_metrics():
    examples = [example("red circle", task="description")] * 2
    texts = ["There is a red circle.", "There is a red circle. There is a red circle."]
    found = scores_of(description_family(SHAPES), examples, texts)
    assert found["description_degeneration_rate"] == 0.5
    assert found["description_repetition"] == 0.5
    assert found["description_unfinished"] == 0.0
    assert found["description_object_recall"] == 1.0
