from mgpt.data.boxes import Box
from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.examples import GroundedPhrase, Item
from mgpt.evaluation.metrics.grounded_captioning import grounding_family, matched, predicted_pairs, same_phrase

SHAPES = load_vocabulary("shapes")
TRUTH = (
    GroundedPhrase("red circle", (Box(0, 0, 20, 20),)),
    GroundedPhrase("blue square", (Box(50, 50, 80, 80), Box(10, 60, 40, 90))),
)
ITEM = Item("i", "i", "grounding", "shapes", b"", 100, 100, ({"role": "user", "content": "x"},), ("r",), TRUTH)


def parts(text):
    found = grounding_family(SHAPES).judge(ITEM, text, True).parts
    return {name.removeprefix("grounding_"): (part.numerator, part.denominator) for name, part in found.items()}


def test_a_phrase_with_two_boxes_is_two_pairs():
    text = "a <p>red circle</p> {<0><0><20><20>} and <p>blue square</p> {<50><50><80><80>}<delim>{<10><60><40><90>}"
    assert parts(text) == {"precision": (3, 3), "recall": (3, 3), "box_recall": (3, 3)}


def test_a_wrong_phrase_counts_for_the_box_only():
    assert parts("<p>green cross</p> {<0><0><20><20>}") == {"precision": (0, 1), "recall": (0, 3), "box_recall": (1, 3)}


def test_a_true_pair_is_taken_once():
    assert parts("<p>red circle</p> {<0><0><20><20>} <p>red circle</p> {<0><0><20><20>}") == {
        "precision": (1, 2),
        "recall": (1, 3),
        "box_recall": (1, 3),
    }


def test_text_without_pairs_is_unparsed():
    assert not grounding_family(SHAPES).judge(ITEM, "a red circle", True).parsed
    assert predicted_pairs("<p>red circle</p> and more", 100, 100) == []


def test_phrases_match_by_words_or_objects():
    assert same_phrase("The red circle", "red circle", SHAPES)
    assert same_phrase("small crimson disc", "red circle", SHAPES)
    assert not same_phrase("red square", "red circle", SHAPES)
    assert not same_phrase("a thing", "an object", SHAPES)


def test_each_prediction_takes_the_truth_that_it_overlaps_most():
    truth = [("x", Box(0, 0, 10, 10)), ("x", Box(1, 0, 11, 10))]
    assert matched([("x", Box(1, 0, 11, 10)), ("x", Box(0, 0, 10, 10))], truth, SHAPES) == 2
