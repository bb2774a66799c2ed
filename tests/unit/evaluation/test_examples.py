import dataclasses

import pytest

from mgpt.data.boxes import Box
from mgpt.data.types import Turn
from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.examples import DATA_TASKS, ExampleOptions, build_examples

SHAPES = load_vocabulary("shapes")


def build(samples, task, limit=1000, seed=0):
    return build_examples(samples, task, SHAPES, ExampleOptions(limit, seed, {"small": 0.07, "large": 1.0}))


def test_every_expression_is_an_example(samples):
    one = next(sample for sample in samples if sample.task == "refer")
    several = one.revise(turns=(Turn("user", "the first", ("the first", "the second", "the first")), one.turns[1]))
    examples = build([several], "rec")
    expressions = [example.question.rsplit("location of ")[-1] for example in examples]
    assert expressions == ["the first", "the second", "the first"]
    assert len({example.key for example in examples}) == len({example.id for example in examples}) == 3


def test_smaller_limit_gives_a_prefix(samples):
    whole = build(samples, "vqa", 50)
    assert build(list(reversed(samples)), "vqa", 20) == whole[:20]
    assert build(samples, "vqa", 50, seed=1) != whole


def test_true_box_of_rec_is_in_pixels(samples):
    for example in build(samples, "rec"):
        assert isinstance(example.phrases[0].boxes[0], Box)
        assert example.references[0].startswith("{<")
        assert example.question.startswith("<Img><ImageHere></Img> [refer] give me the location of ")


def test_grounded_phrases_have_their_boxes(samples):
    example = build(samples, "grounded_captioning", 1)[0]
    assert sorted({phrase.text for phrase in example.phrases}) == list(example.objects)
    assert all(len(phrase.boxes) == 1 for phrase in example.phrases)


def test_objects_come_from_annotations_and_captions(samples):
    caption = next(sample for sample in samples if sample.task == "caption")
    bare = caption.revise(
        extra={"objects": ["red circle", "red circle"]},
        turns=(Turn("user", ""), Turn("assistant", "a red circle and a blue cross")),
    )
    example = build([bare], "captioning")[0]
    assert example.objects == ("blue cross", "red circle")
    assert ("objects", "3") in example.slices


def test_size_slices_follow_the_limits(samples):
    areas = {f"reg-{sample.id}-0": sample.boxes[0].area for sample in samples if sample.task == "identify"}
    for example in build(samples, "reg"):
        assert ("size", "small" if areas[example.id] / 64**2 <= 0.07 else "large") in example.slices


def test_references_are_the_answers_of_ten_people(samples):
    assert {len(example.references) for example in build(samples, "vqa")} == {10}


def test_captions_replace_missing_descriptions(samples):
    captions = [sample for sample in samples if sample.task == "caption"]
    examples = build(captions, "description")
    assert len(examples) == len(captions)
    assert examples[0].question.endswith("Describe this image in detail.")


def test_statements_are_vqa_with_their_own_prompt(samples):
    one = dataclasses.replace(next(sample for sample in samples if sample.task == "vqa"), task="statement")
    assert build([one], "vqa")[0].question.startswith(
        "<Img><ImageHere></Img> [vqa] Based on the image, is this statement true"
    )


@pytest.mark.parametrize("task", ["rec", "grounded_captioning"])
def test_no_examples_without_samples(task, samples):
    assert build([sample for sample in samples if sample.task not in DATA_TASKS[task]], task) == []
