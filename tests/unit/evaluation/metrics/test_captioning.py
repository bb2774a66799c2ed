import pytest

from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.examples import Item
from mgpt.evaluation.metrics.captioning import caption_family, description_family
from mgpt.evaluation.scoring import Reply, score_family

SHAPES = load_vocabulary("shapes")


def item(*objects, task="caption"):
    return Item("i", "i", task, "shapes", b"", 64, 64, ({"role": "user", "content": "x"},), ("ref",), objects=objects)


def scores(family, items, texts):
    found, _ = score_family(family, items, [Reply(text, True) for text in texts], chance={}, resamples=200, seed=0)
    return {name: score.value for name, score in found.items()}


def test_recall_and_both_hallucination_rates():
    items = [item("red circle", "blue square"), item("green cross")]
    found = scores(caption_family(SHAPES), items, ["a red circle, a red circle and a yellow cross", "a green cross"])
    assert found["captioning_object_recall"] == pytest.approx(2 / 3)
    assert found["captioning_hallucinated_objects"] == pytest.approx(1 / 4)
    assert found["captioning_with_hallucination"] == pytest.approx(1 / 2)
    assert found["captioning_words"] == pytest.approx((10 + 3) / 2)


def test_silence_is_no_good_score():
    found = scores(caption_family(SHAPES), [item("red circle")], [""])
    assert found["captioning_hallucinated_objects"] == 1.0
    assert found["captioning_object_recall"] == 0.0


def test_descriptions_have_failures_too():
    items = [item("red circle", task="describe")] * 2
    found = scores(
        description_family(SHAPES), items, ["There is a red circle.", "There is a red circle. There is a red circle."]
    )
    assert found["description_degeneration_rate"] == 0.5
    assert found["description_repetition"] == 0.5
    assert found["description_unfinished"] == 0.0
