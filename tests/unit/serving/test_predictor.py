"""Boxes of answers, and the predictor with a tiny trained model."""

import json

import pytest

from mgpt.serving.images import sample_image
from mgpt.serving.predictor import find_boxes
from mgpt.serving.types import LabelledBox, Reply
from tests.fixtures.registry import BOX_ANSWER, BOX_PROMPT


def test_boxes_are_labelled_by_prompt():
    (box,) = find_boxes("{<10><20><50><100>}", "[refer] the red circle", 200, 50)
    assert (box.label, round(box.x1), round(box.y1), round(box.x2), round(box.y2)) == (
        "the red circle",
        20,
        10,
        100,
        50,
    )


def test_boxes_are_labelled_by_phrases():
    text = "<p>two dogs</p> {<0><0><10><10>}<delim>{<20><20><30><30>} and <p>a cat</p> {<50><50><60><60>}"
    assert [box.label for box in find_boxes(text, "[grounding] describe this", 100, 100)] == [
        "two dogs",
        "two dogs",
        "a cat",
    ]


def test_boxes_outside_phrases_are_kept():
    text = "<p>a dog</p> {<0><0><10><10>} {<20><20><30><30>} or maybe {<1><1><2><2>}"
    assert len(find_boxes(text, "where?", 100, 100)) == 3


@pytest.mark.parametrize(
    "text", ["", "no box", "{<1><2><3>}", "{<5><5><200><5>}", "{<9><9><1><1>}", "<p>", "\ud800{<<>>"]
)
def test_texts_without_boxes(text):
    assert find_boxes(text, "[refer] x", 100, 100) == ()


def test_box_in_prompt_is_not_a_label():
    assert find_boxes("{<1><1><2><2>}", "[identify] what is {<1><1><2><2>}", 100, 100)[0].label == "what is"


def test_single_answers_equal_batch(predictor):
    small = sample_image().resize((90, 40))
    questions = [
        (sample_image(), "[refer] the red circle"),
        (small, "what is in this image?"),
        (sample_image(), "[vqa] a"),
    ]
    together = predictor.answer_all(questions, max_new_tokens=12, batch_size=3)
    assert together == [predictor.answer(image, prompt, max_new_tokens=12) for image, prompt in questions]


def test_boxes_are_in_pixels_of_given_image(predictor):
    reply = predictor.answer(sample_image(), BOX_PROMPT)
    assert (reply.text, reply.plain, reply.finished) == (BOX_ANSWER, "", True)
    (box,) = reply.boxes
    assert box.label == "the red circle"
    assert [box.x1, box.y1, box.x2, box.y2] == pytest.approx([22.4, 44.8, 134.4, 201.6])
    assert not predictor.answer(sample_image(), BOX_PROMPT, 3).finished


def test_no_questions_give_no_answers(predictor):
    assert predictor.answer_all([]) == []


def test_bad_question_is_numbered(predictor):
    with pytest.raises(ValueError, match="question 1: the prompt is empty"):
        predictor.answer_all([(sample_image(), "a"), (sample_image(), "  ")])
    with pytest.raises(ValueError, match="question 1: image: 'x' is neither"):
        predictor.answer_all([(sample_image(), "a"), ("x", "b")])


def test_replies_serialise_to_json():
    reply = Reply("t", "t", (LabelledBox("a", 1.0, 2.0, 3.0, 4.0),), True)
    assert json.loads(json.dumps(reply.as_dict()))["boxes"] == [
        {"label": "a", "x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}
    ]
