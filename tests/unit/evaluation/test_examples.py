import dataclasses

import pytest

from mgpt.data.boxes import Box
from mgpt.data.types import Turn
from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.examples import ItemRules, build_items

SHAPES = load_vocabulary("shapes")


def rules(limit=1000, seed=0):
    return ItemRules(limit, seed, {"small": 0.07, "large": 1.0})


def test_every_expression_is_an_item_of_its_own(samples):
    one = next(sample for sample in samples if sample.task == "refer")
    several = one.revise(turns=(Turn("user", "the first", ("the first", "the second", "the first")), one.turns[1]))
    items = build_items([several], "refer", SHAPES, rules())
    assert [item.question.rsplit("location of ")[-1] for item in items] == ["the first", "the second", "the first"]
    assert len({item.key for item in items}) == len({item.id for item in items}) == 3


def test_a_smaller_limit_asks_a_part_of_the_same_items(samples):
    whole = build_items(samples, "vqa", SHAPES, rules(50))
    assert build_items(list(reversed(samples)), "vqa", SHAPES, rules(20)) == whole[:20]
    assert build_items(samples, "vqa", SHAPES, rules(50, seed=1)) != whole


def test_the_truth_of_a_reference_is_in_pixels(samples):
    for item in build_items(samples, "refer", SHAPES, rules()):
        assert isinstance(item.phrases[0].boxes[0], Box)
        assert item.references[0].startswith("{<")
        assert item.question.startswith("<Img><ImageHere></Img> [refer] give me the location of ")


def test_grounded_phrases_carry_their_boxes(samples):
    item = build_items(samples, "grounding", SHAPES, rules(1))[0]
    assert sorted({phrase.text for phrase in item.phrases}) == list(item.objects)
    assert all(len(phrase.boxes) == 1 for phrase in item.phrases)


def test_objects_are_annotations_and_what_captions_name(samples):
    caption = next(sample for sample in samples if sample.task == "caption")
    bare = caption.revise(
        extra={"objects": ["red circle", "red circle"]},
        turns=(Turn("user", ""), Turn("assistant", "a red circle and a blue cross")),
    )
    item = build_items([bare], "caption", SHAPES, rules())[0]
    assert item.objects == ("blue cross", "red circle")
    assert ("objects", "3") in item.slices


def test_slices_of_size_follow_the_limits(samples):
    for item in build_items(samples, "identify", SHAPES, rules()):
        share = next(sample for sample in samples if item.id == f"identify-{sample.id}-0").boxes[0].area / 64**2
        assert ("size", "small" if share <= 0.07 else "large") in item.slices


def test_answers_of_ten_people_are_references(samples):
    assert {len(item.references) for item in build_items(samples, "vqa", SHAPES, rules())} == {10}


def test_images_stand_in_for_a_task_without_samples(samples):
    captions = [sample for sample in samples if sample.task == "caption"]
    items = build_items(captions, "describe", SHAPES, rules())
    assert len(items) == len(captions)
    assert items[0].question.endswith("Describe this image in detail.")


def test_statements_are_scored_as_questions_and_keep_their_prompt(samples):
    one = dataclasses.replace(next(sample for sample in samples if sample.task == "vqa"), task="statement")
    assert build_items([one], "vqa", SHAPES, rules())[0].question.startswith(
        "<Img><ImageHere></Img> [vqa] Based on the image, is this statement true"
    )


@pytest.mark.parametrize("task", ["refer", "grounding"])
def test_no_samples_no_items(task, samples):
    assert build_items([sample for sample in samples if sample.task != task], task, SHAPES, rules()) == []
