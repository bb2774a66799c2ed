from mgpt.evaluation.metrics.reg import constants, score, word_f1
from mgpt.evaluation.types import Example


def example(*references):
    return Example("i", "i", "reg", "refcoco", b"", 10, 10, ({"role": "user", "content": "x"},), references)


def scores_of(one, text):
    return {name: found.numerator for name, found in score(one, text, True).contributions.items()}


def test_any_reference_matches_after_normalisation():
    one = example("the red circle", "circle on left")
    assert scores_of(one, "Red circle.")["reg_exact"] == 1.0
    assert scores_of(one, "circle on the left")["reg_exact"] == 1.0
    assert scores_of(one, "circle")["reg_exact"] == 0.0


def test_word_overlap():
    assert word_f1(["red", "circle"], ["red", "square"]) == 0.5
    assert scores_of(example("red circle"), "red square")["reg_word_overlap"] == 0.5
    assert word_f1([], ["red"]) == 0.0


def test_answer_without_words_is_unparsed():
    assert not score(example("red circle"), " ... ", True).parsed


def test_constants_are_the_most_frequent_expressions():
    assert constants([example("a"), example("b"), example("b")])[0] == "b"
