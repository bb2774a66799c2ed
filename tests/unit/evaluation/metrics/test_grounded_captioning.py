from mgpt.data.boxes import Box
from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.metrics.grounded_captioning import (
    count_matches,
    grounded_captioning_family,
    predicted_pairs,
    same_phrase,
)
from mgpt.evaluation.types import Example, GroundedPhrase

SHAPES = load_vocabulary("shapes")
TRUTH = (
    GroundedPhrase("red circle", (Box(0, 0, 20, 20),)),
    GroundedPhrase("blue square", (Box(50, 50, 80, 80), Box(10, 60, 40, 90))),
)
MESSAGES = ({"role": "user", "content": "x"},)
EXAMPLE = Example("i", "i", "grounded_captioning", "shapes", b"", 100, 100, MESSAGES, ("r",), TRUTH)


def score(text):
    return grounded_captioning_family(SHAPES).score(EXAMPLE, text, True)


def ratios(text):
    found = score(text).contributions.items()
    return {name.removeprefix("grounded_captioning_"): (one.numerator, one.denominator) for name, one in found}


def test_phrase_with_two_boxes_is_two_pairs():
    text = "a <p>red circle</p> {<0><0><20><20>} and <p>blue square</p> {<50><50><80><80>}<delim>{<10><60><40><90>}"
    assert ratios(text) == {"precision": (3, 3), "recall": (3, 3), "box_recall": (3, 3)}


def test_wrong_phrase_counts_in_box_recall_only():
    assert ratios("<p>green cross</p> {<0><0><20><20>}") == {
        "precision": (0, 1),
        "recall": (0, 3),
        "box_recall": (1, 3),
    }


def test_true_pair_is_matched_once():
    assert ratios("<p>red circle</p> {<0><0><20><20>} <p>red circle</p> {<0><0><20><20>}") == {
        "precision": (1, 2),
        "recall": (1, 3),
        "box_recall": (1, 3),
    }


def test_text_without_pairs_is_unparsed():
    assert not score("a red circle").parsed
    assert predicted_pairs("<p>red circle</p> and more", 100, 100) == []


def test_phrases_match_by_words_or_objects():
    assert same_phrase("The red circle", "red circle", SHAPES)
    assert same_phrase("small crimson disc", "red circle", SHAPES)
    assert not same_phrase("red square", "red circle", SHAPES)
    assert not same_phrase("a thing", "an object", SHAPES)


def test_prediction_matches_the_truth_of_highest_iou():
    truth = [("x", Box(0, 0, 10, 10)), ("x", Box(1, 0, 11, 10))]
    assert count_matches([("x", Box(1, 0, 11, 10)), ("x", Box(0, 0, 10, 10))], truth, SHAPES) == 2
