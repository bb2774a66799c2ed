"""Normalization of training text, as in the original."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt.data.boxes import Box
from mgpt.data.text_normalization import normalize_sample, normalize_text
from mgpt.data.types import Sample, SampleImage, Turn


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("At 11:30, it costs $3.5!", "at 11 30, it costs $3 5"),
        ("U.S.A.?", "u s a ?"),
        ('[refer] the {<1><2>} boy\'s well-known "hat"\n', "[refer] the {<1><2>} boy's well-known hat"),
        ("  two\n\nlines\tand  more ", "two lines\tand more"),
        ("", ""),
        (" ".join(str(n) for n in range(60)), " ".join(str(n) for n in range(50))),
    ],
)
def test_examples(text: str, expected: str):
    assert normalize_text(text) == expected


@given(st.text())
def test_words_and_punctuation_are_limited(text: str):
    once = normalize_text(text)
    assert len(once.split(" ")) <= 50
    assert not set('.!"()*#:;~') & set(once)


def test_normalize_sample():
    turns = (Turn("user", "What is at <box:0>?"), Turn("assistant", "A Dog.", ("A Dog.", "The DOG!")))
    sample = Sample.create(
        dataset="x",
        split="train",
        task="identify",
        images=(SampleImage(b"i", 9, 9),),
        turns=turns,
        boxes=(Box(0, 0, 1, 1),),
        licence="",
        source="",
    )
    both = normalize_sample(sample, ("user", "assistant"))
    assert both.turns == (Turn("user", "what is at <box:0>?"), Turn("assistant", "a dog", ("a dog", "the dog")))
    assert both.id == both.content_hash() != sample.id
    assert normalize_sample(sample, ("assistant",)).turns[0] == turns[0]
    assert normalize_sample(both, ("user", "assistant")) is both
