import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt.data.boxes import Box, format_box
from mgpt.evaluation.metrics.rec import FAMILY, inclusive_iou, original_box, score
from mgpt.evaluation.scoring import chance_levels, score_examples
from mgpt.evaluation.types import Example, GroundedPhrase
from mgpt.inference.types import GenerationOutput


def example(box, width=640, height=480, name="a"):
    return Example(
        id=name,
        key=name,
        task="rec",
        dataset="refcoco",
        image=b"",
        width=width,
        height=height,
        messages=({"role": "user", "content": "x"},),
        references=(format_box(Box(*box), width, height),),
        phrases=(GroundedPhrase("x", (Box(*box),)),),
    )


def scores_of(one, text):
    return {name: found.numerator for name, found in score(one, text, True).contributions.items()}


def test_iou_of_one_half_is_wrong():
    one = example((0, 0, 64, 48), 100, 100)
    half = scores_of(one, "{<0><0><64><24>}")
    assert half["rec_mean_iou"] == pytest.approx(0.5)
    assert half["rec_accuracy"] == 0.0
    assert scores_of(one, "{<0><0><64><25>}")["rec_accuracy"] == 1.0


def test_original_rule_counts_both_end_pixels():
    assert inclusive_iou(Box(0, 0, 9, 9), Box(0, 0, 9, 4)) == pytest.approx(0.5)
    assert inclusive_iou(Box(0, 0, 4, 4), Box(5, 0, 9, 4)) == 0.0
    assert inclusive_iou(Box(0, 0, 4, 4), Box(4, 0, 8, 4)) == pytest.approx(5 / 45)
    # 3 x 10 pixels of 6 x 10: exactly half without the extra pixel, 4/7 with it
    found = scores_of(example((0, 0, 6, 10), 100, 100), "{<0><0><3><10>}")
    assert (found["rec_accuracy"], found["rec_accuracy_original"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "parsed", "right_by_original"),
    [
        ("{<10><10><50><50>}", True, True),
        ("{<10> <10> <50> <50>} </s>", True, True),
        ("<unk>{<10><10><50><50>}", True, True),
        ("it is {<10><10><50><50>}", True, False),
        ("{<10><10><50><50>}{<10><10><50><50>}", True, False),
        ("{<10><10><50>", False, False),
        ("", False, False),
    ],
)
def test_parsing_of_boxes(text, parsed, right_by_original):
    found = score(example((10, 10, 50, 50), 100, 100), text, True)
    assert found.parsed == parsed
    assert (found.contributions["rec_accuracy_original"].numerator == 1.0) == right_by_original


def test_original_accepts_coordinates_beyond_the_image():
    assert original_box("{<0><0><120><50>}", 100, 200) == Box(0, 0, 120, 100)


@st.composite
def truths(draw):
    width, height = draw(st.integers(50, 2000)), draw(st.integers(50, 2000))
    x1, y1 = draw(st.floats(0, width * 0.8)), draw(st.floats(0, height * 0.8))
    x2, y2 = draw(st.floats(x1 + width * 0.1, width)), draw(st.floats(y1 + height * 0.1, height))
    return (x1, y1, x2, y2), width, height


@given(truths())
def test_oracle_is_always_right(truth):
    box, width, height = truth
    one = example(box, width, height)
    found = scores_of(one, one.references[0])
    assert found["rec_accuracy"] == found["rec_accuracy_original"] == 1.0


def test_expressions_of_one_image_are_scored_separately():
    left, right = example((0, 0, 100, 100), name="ref 1"), example((400, 300, 600, 460), name="ref 2")
    answers = [GenerationOutput(left.references[0], True), GenerationOutput(right.references[0], True)]
    scores, _ = score_examples(FAMILY, [left, right], answers, chance={}, resamples=200, seed=0)
    assert scores["rec_accuracy"].value == 1.0


def test_chance_is_the_best_constant_box():
    examples = [example((0, 0, 100, 100), name=str(i)) for i in range(3)]
    examples.append(example((400, 300, 600, 460), name="other"))
    levels = chance_levels(FAMILY, examples, [None] * 4, seed=0)
    assert levels["rec_accuracy"] == 0.75
