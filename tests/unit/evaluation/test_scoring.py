import numpy as np
import pytest

from mgpt.evaluation.scoring import bootstrap, chance_levels, ratio, score_examples
from mgpt.evaluation.types import Contribution, Example, ExampleScore, Metric, MetricFamily
from mgpt.inference.types import GenerationOutput


def example(name, truth, **slices):
    messages = ({"role": "user", "content": "x"},)
    return Example(name, name, "vqa", "made", b"", 1, 1, messages, (truth,), slices=tuple(slices.items()))


def score(one, text, finished):
    right = text == one.references[0]
    contributions = {"right": Contribution(float(right)), "wrong": Contribution(float(not right))}
    return ExampleScore(contributions, parsed=text != "?")


METRICS = (Metric("right", headline=True), Metric("wrong", higher_is_better=False))
FAMILY = MetricFamily("vqa", METRICS, score, lambda examples: sorted({one.references[0] for one in examples}))


def test_interval_covers_the_true_value_in_about_95_percent():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        contributions = [Contribution(float(right)) for right in rng.random(100) < 0.6]
        low, high = bootstrap(contributions, 300, trial)
        covered += low <= 0.6 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_interval_depends_on_the_seed_alone():
    contributions = [Contribution(float(i % 3 == 0), float(1 + i % 2)) for i in range(50)]
    first = bootstrap(contributions, 500, 1)
    assert first == bootstrap(contributions, 500, 1)
    assert first != bootstrap(contributions, 500, 2)


def test_ratio_weighs_by_denominator():
    assert ratio([Contribution(1, 1), Contribution(0, 3)]) == 0.25
    assert ratio([Contribution(0, 0)], worst=1.0) == 1.0


def test_missing_and_unparsed_are_counted_and_wrong():
    examples = [example("a", "red"), example("b", "red"), example("c", "red")]
    answers = [GenerationOutput("red", True), GenerationOutput("?", True), None]
    scores, example_scores = score_examples(FAMILY, examples, answers, chance={}, resamples=100, seed=0)
    right = scores["right"]
    assert (right.value, right.n, right.missing, right.unparsed) == (pytest.approx(1 / 3), 3, 1, 1)
    assert len(example_scores) == 3


def test_slices_partition_the_examples():
    examples = [example(str(i), "red", objects=str(i % 2)) for i in range(10)]
    answers = [GenerationOutput("red" if i % 2 else "blue", True) for i in range(10)]
    scores, _ = score_examples(FAMILY, examples, answers, chance={}, resamples=100, seed=0)
    slices = scores["right"].slices["objects"]
    assert {name: (entry["value"], entry["n"]) for name, entry in slices.items()} == {"0": (0.0, 5), "1": (1.0, 5)}


def test_chance_is_the_better_of_constant_and_shuffled_answers():
    examples = [example(str(i), "yes" if i < 70 else "no") for i in range(100)]
    perfect = [GenerationOutput(one.references[0], True) for one in examples]
    levels = chance_levels(FAMILY, examples, perfect, seed=0)
    assert levels["right"] == pytest.approx(0.70, abs=0.001)
    # shuffled answers of a perfect model agree in 0.7^2 + 0.3^2 of the cases
    assert levels["wrong"] == pytest.approx(0.42, abs=0.08)


def test_shuffled_answer_never_stays_with_its_example():
    examples = [example(str(i), str(i)) for i in range(20)]
    no_constant = MetricFamily("vqa", FAMILY.metrics, score)
    levels = chance_levels(no_constant, examples, [GenerationOutput(str(i), True) for i in range(20)], seed=3)
    assert levels == {"right": 0.0, "wrong": 1.0}


def test_no_examples_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match=r"'vqa'.*no held-out examples"):
        score_examples(FAMILY, [], [], chance={}, resamples=100, seed=0)
    with pytest.raises(ValueError, match="1 answers for 2 examples"):
        score_examples(FAMILY, [example("a", "x"), example("b", "x")], [None], chance={}, resamples=100, seed=0)
