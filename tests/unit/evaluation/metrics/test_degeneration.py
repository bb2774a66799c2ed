import pytest

from mgpt.inference.degeneration import degeneration_kinds, has_repetition


@pytest.mark.parametrize(
    ("text", "finished", "kinds"),
    [
        ("There is a red circle at the top.", True, []),
        ("", True, ["empty", "unfinished"]),
        ("Red.", True, ["empty"]),
        ("There is a red circle at the top.", False, ["unfinished"]),
        ("There is a red circle at the", True, ["unfinished"]),
        ("There is a red circle. there is a RED circle!", True, ["repetition"]),
        ("It is very very very big.", True, ["repetition"]),
        ("It is very very big.", True, []),
        ("a b c a b c a b c", False, ["repetition", "unfinished"]),
    ],
)
def test_kinds(text, finished, kinds):
    assert degeneration_kinds(text, finished) == kinds


def test_similar_sentences_are_no_repetition():
    assert not has_repetition(
        "There is a red circle at the top. There is a blue circle at the top. There is a red cross at the top."
    )


def test_long_loop_is_a_repetition():
    assert has_repetition(" ".join(["the cat sat on the old mat and"] * 3))
    assert not has_repetition(" ".join(["the cat sat on the old mat and"] * 2))
