from mgpt.evaluation.examples import Item
from mgpt.evaluation.metrics.reg import FAMILY, constants, judge, word_f1


def item(*references):
    return Item("i", "i", "identify", "refcoco", b"", 10, 10, ({"role": "user", "content": "x"},), references)


def test_any_reference_counts_after_normalisation():
    asked = item("the red circle", "circle on left")
    assert judge(asked, "Red circle.", True).parts["reg_exact"].numerator == 1.0
    assert judge(asked, "circle on the left", True).parts["reg_exact"].numerator == 1.0
    assert judge(asked, "circle", True).parts["reg_exact"].numerator == 0.0


def test_word_overlap():
    assert word_f1(["red", "circle"], ["red", "square"]) == 0.5
    assert judge(item("red circle"), "red square", True).parts["reg_word_overlap"].numerator == 0.5
    assert word_f1([], ["red"]) == 0.0


def test_no_words_is_unparsed():
    assert not judge(item("red circle"), " ... ", True).parsed


def test_constants_are_the_frequent_expressions():
    assert constants([item("a"), item("b"), item("b")])[0] == "b"
    assert {metric.name for metric in FAMILY.metrics} == set(judge(item("a"), "a", True).parts)
