"""Expected values computed by hand from the published evaluator's rules."""

import pytest

from mgpt.evaluation.metrics.vqa import (
    CONTRACTIONS,
    exact,
    official,
    process_digits_and_articles,
    process_punctuation,
    score,
    vizwiz,
)
from mgpt.evaluation.types import Example


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # n of ten people agree: n of them see n-1 others, 10-n see n
    [(0, 0.0), (1, 0.9 / 3), (2, (2 * 1 + 8 * 2) / 30), (3, (3 * 2 + 7 * 3) / 30), (4, 1.0), (10, 1.0)],
)
def test_leave_one_out(agreeing, expected):
    people = ["red"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert official("red", people) == pytest.approx(expected)


def test_normalisation_only_where_people_differ():
    assert official("two", ["2"] * 10) == 0.0
    assert official("two", ["2"] * 9 + ["three"]) == 1.0
    assert official("The Cats!", ["cats"] * 9 + ["dog"]) == 1.0
    assert official("Red <unk>", ["red"] * 10) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes, it is", "yes it is"),  # a mark next to a space is removed
        ("black-white", "black white"),  # any other mark becomes a space
        ("1,000-2", "1000 2".replace(" ", "")),  # a text with digit,digit loses every mark
        ("u.s.", "us"),
        ("3.5", "3.5"),
        ("a.5", "a.5"),
        ("what?", "what "),
    ],
)
def test_punctuation(text, expected):
    assert process_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none of the TEN", "0 of 10"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("im", "im"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_digits_articles_and_contractions(text, expected):
    assert process_digits_and_articles(text) == expected


def test_contractions_table_has_the_evaluators_size():
    # 120 entries there, of which four upper-case ones (Id've, I'dve, Im, Ive) and two identities (let's, she's) never
    # change a text
    assert len(CONTRACTIONS) == 114
    assert {"id've", "im", "shes", "lets"}.isdisjoint(CONTRACTIONS)


def test_vizwiz_neither_leaves_one_out_nor_normalises():
    assert vizwiz("Red", ["red", "red", "blue"]) == pytest.approx(2 / 3)
    assert vizwiz("red.", ["red"] * 10) == 0.0
    assert vizwiz("red", ["red"] * 10) == 1.0


def accuracy(dataset, references, text):
    messages = ({"role": "user", "content": "x"},)
    one = Example("i", "i", "vqa", dataset, b"", 1, 1, messages, tuple(references))
    return score(one, text, True).contributions["vqa_accuracy"].numerator


def test_dataset_selects_the_rule():
    people = ["red"] * 2 + ["blue"] * 8
    assert accuracy("gqa", ["Left"], " left") == 1.0
    assert accuracy("vqav2", people, "red") == pytest.approx(0.6)
    assert accuracy("vizwiz", people, "red") == pytest.approx(2 / 3)
    assert exact("true", ["false"]) == 0.0


def test_blank_answer_is_unparsed():
    one = Example("i", "i", "vqa", "gqa", b"", 1, 1, ({"role": "user", "content": "x"},), ("left",))
    assert not score(one, "  ", True).parsed
