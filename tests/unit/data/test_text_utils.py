"""Words and sentences."""

from hypothesis import given
from hypothesis import strategies as st

from mgpt.data.text_utils import is_ended, normalize_answer, sentences, words


def test_normalize_answer():
    assert normalize_answer("  The Red-circle, <unk>left of a dog's bowl! ") == "red circle left of dog's bowl"


@given(st.text())
def test_sentences_lose_no_word(text):
    assert words(" ".join(sentences(text))) == words(text)


def test_sentences_keep_their_marks():
    assert sentences("One is 3.5 cm.  Two?! and then") == ["One is 3.5 cm.", "Two?!", "and then"]


def test_is_ended():
    assert is_ended('He said "stop."')
    assert is_ended("Really? ")
    assert not is_ended("a red circle,")
