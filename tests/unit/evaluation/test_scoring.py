import numpy as np
import pytest

from mgpt.evaluation.examples import Item
from mgpt.evaluation.scoring import (
    Family,
    Judgement,
    Metric,
    Part,
    Reply,
    bootstrap,
    chance_levels,
    ratio,
    score_family,
)


def item(name, truth, **slices):
    return Item(
        name,
        name,
        "vqa",
        "made",
        b"",
        1,
        1,
        ({"role": "user", "content": "x"},),
        (truth,),
        slices=tuple(slices.items()),
    )


def judge(asked, text, finished):
    return Judgement(
        {"right": Part(float(text == asked.references[0])), "wrong": Part(float(text != asked.references[0]))},
        parsed=text != "?",
    )


METRICS = (Metric("right", headline=True), Metric("wrong", higher_is_better=False))
FAMILY = Family("vqa", METRICS, judge, lambda items: sorted({asked.references[0] for asked in items}))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        parts = [Part(float(right)) for right in rng.random(100) < 0.6]
        low, high = bootstrap(parts, 300, trial)
        covered += low <= 0.6 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_interval_depends_on_the_seed_alone():
    parts = [Part(float(i % 3 == 0), float(1 + i % 2)) for i in range(50)]
    assert bootstrap(parts, 500, 1) == bootstrap(parts, 500, 1) != bootstrap(parts, 500, 2)


def test_items_with_more_to_find_weigh_more():
    assert ratio([Part(1, 1), Part(0, 3)]) == 0.25
    assert ratio([Part(0, 0)], worst=1.0) == 1.0


def test_missing_and_unparsed_are_counted_and_wrong():
    items = [item("a", "red"), item("b", "red"), item("c", "red")]
    scores, judgements = score_family(
        FAMILY, items, [Reply("red", True), Reply("?", True), None], chance={}, resamples=100, seed=0
    )
    right = scores["right"]
    assert (right.value, right.n, right.missing, right.unparsed) == (pytest.approx(1 / 3), 3, 1, 1)
    assert len(judgements) == 3


def test_slices_partition_the_items():
    items = [item(str(i), "red", objects=str(i % 2)) for i in range(10)]
    replies = [Reply("red" if i % 2 else "blue", True) for i in range(10)]
    scores, _ = score_family(FAMILY, items, replies, chance={}, resamples=100, seed=0)
    assert {name: (entry["value"], entry["n"]) for name, entry in scores["right"].slices["objects"].items()} == {
        "0": (0.0, 5),
        "1": (1.0, 5),
    }


def test_chance_is_the_better_of_constant_and_dealt_answers():
    items = [item(str(i), "yes" if i < 70 else "no") for i in range(100)]
    always = [Reply(asked.references[0], True) for asked in items]
    levels = chance_levels(FAMILY, items, always, seed=0)
    assert levels["right"] == pytest.approx(0.70, abs=0.001)
    # dealt answers of a perfect model agree in 0.7^2 + 0.3^2 of the cases
    assert levels["wrong"] == pytest.approx(0.42, abs=0.08)


def test_a_dealt_answer_is_never_ones_own():
    items = [item(str(i), str(i)) for i in range(20)]
    no_constant = Family("vqa", FAMILY.metrics, judge)
    levels = chance_levels(no_constant, items, [Reply(str(i), True) for i in range(20)], seed=3)
    assert levels == {"right": 0.0, "wrong": 1.0}


def test_no_items_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="no held-out items of task 'vqa'"):
        score_family(FAMILY, [], [], chance={}, resamples=100, seed=0)
    with pytest.raises(ValueError, match="1 answers for 2 items"):
        score_family(FAMILY, [item("a", "x"), item("b", "x")], [None], chance={}, resamples=100, seed=0)
