import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt.data.boxes import Box, format_box
from mgpt.evaluation.examples import GroundedPhrase, Item
from mgpt.evaluation.metrics.rec import FAMILY, inclusive_iou, judge, original_box
from mgpt.evaluation.scoring import Reply, chance_levels, score_family


def item(box, width=640, height=480, name="a"):
    truth = format_box(Box(*box), width, height)
    return Item(
        name,
        name,
        "refer",
        "refcoco",
        b"",
        width,
        height,
        ({"role": "user", "content": "x"},),
        (truth,),
        (GroundedPhrase("x", (Box(*box),)),),
    )


def test_half_overlap_is_wrong_because_the_rule_is_strict():
    wide = judge(item((0, 0, 64, 48), 100, 100), "{<0><0><64><24>}", True).parts
    assert wide["rec_mean_iou"].numerator == pytest.approx(0.5)
    assert wide["rec_accuracy"].numerator == 0.0
    assert judge(item((0, 0, 64, 48), 100, 100), "{<0><0><64><25>}", True).parts["rec_accuracy"].numerator == 1.0


def test_the_original_counts_both_end_pixels():
    assert inclusive_iou(Box(0, 0, 9, 9), Box(0, 0, 9, 4)) == pytest.approx(0.5)
    assert inclusive_iou(Box(0, 0, 4, 4), Box(5, 0, 9, 4)) == 0.0
    assert inclusive_iou(Box(0, 0, 4, 4), Box(4, 0, 8, 4)) == pytest.approx(5 / 45)
    # 3 x 10 pixels of 6 x 10: exactly half without the extra pixel, 4/7 with it
    parts = judge(item((0, 0, 6, 10), 100, 100), "{<0><0><3><10>}", True).parts
    assert (parts["rec_accuracy"].numerator, parts["rec_accuracy_original"].numerator) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
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
def test_which_answers_have_a_box(text, ours, theirs):
    parts = judge(item((10, 10, 50, 50), 100, 100), text, True)
    assert (parts.parsed, parts.parts["rec_accuracy_original"].numerator == 1.0) == (ours, theirs)


def test_the_original_accepts_coordinates_beyond_the_image():
    assert original_box("{<0><0><120><50>}", 100, 200) == Box(0, 0, 120, 100)


@st.composite
def truths(draw):
    width, height = draw(st.integers(50, 2000)), draw(st.integers(50, 2000))
    x1, y1 = draw(st.floats(0, width * 0.8)), draw(st.floats(0, height * 0.8))
    x2, y2 = draw(st.floats(x1 + width * 0.1, width)), draw(st.floats(y1 + height * 0.1, height))
    return (x1, y1, x2, y2), width, height


@given(truths())
def test_an_oracle_is_always_right(truth):
    box, width, height = truth
    one = item(box, width, height)
    parts = judge(one, one.references[0], True).parts
    assert parts["rec_accuracy"].numerator == parts["rec_accuracy_original"].numerator == 1.0


def test_several_expressions_of_one_image_are_scored_apart():
    left, right = item((0, 0, 100, 100), name="ref 1"), item((400, 300, 600, 460), name="ref 2")
    replies = [Reply(left.references[0], True), Reply(right.references[0], True)]
    scores, _ = score_family(FAMILY, [left, right], replies, chance={}, resamples=200, seed=0)
    assert scores["rec_accuracy"].value == 1.0


def test_chance_finds_the_best_constant_box():
    items = [item((0, 0, 100, 100), name=str(i)) for i in range(3)] + [item((400, 300, 600, 460), name="other")]
    levels = chance_levels(FAMILY, items, [None] * 4, seed=0)
    assert levels["rec_accuracy"] == 0.75
