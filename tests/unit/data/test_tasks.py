"""Task definitions: protocol prompts, instruction pools, rendering, and users' own tasks."""

import json
import random
import re
from collections import Counter

import pytest

from mgpt.data.boxes import Box
from mgpt.data.tasks import IMAGE_PREFIX, load_tasks, prompt, render, shipped_tasks
from mgpt.data.types import Sample, SampleImage, Turn

IMAGE = SampleImage(b"image", 200, 100)


def sample(task: str, *turns: Turn, boxes=(), images=(IMAGE,)) -> Sample:
    return Sample.create(
        dataset="d",
        split="train",
        task=task,
        images=images,
        turns=turns,
        boxes=tuple(Box(*box) for box in boxes),
        licence="",
        source="s#1",
    )


def prompt_text(task: str, content: str = "", boxes=()) -> str:
    (message,) = prompt(sample(task, Turn("user", content), Turn("assistant", "x"), boxes=boxes))
    return message["content"]


def test_pool_sizes():
    sizes = {name: len(set(task.instructions)) for name, task in shipped_tasks().items()}
    assert {name: sizes[name] for name in ("caption", "refer", "identify", "vqa", "grounding", "describe")} == {
        "caption": 17,
        "refer": 7,
        "identify": 7,
        "vqa": 2,
        "grounding": 4,
        "describe": 4,
    }


@pytest.mark.parametrize(
    ("task", "content", "expected"),
    [
        ("vqa", "how many?", "[vqa] Based on the image, respond to this question with a short answer: how many?"),
        ("refer", "the red one", "[refer] give me the location of the red one"),
        ("detection", "a dog and a cat", "[detection] a dog and a cat"),
        ("caption", "", "[caption] briefly describe the image"),
        ("grounding", "", "[grounding] describe this image in as detailed as possible"),
        ("statement", "the cat is left", "[vqa] Based on the image, is this statement true or false? the cat is left"),
        (
            "vqa-unanswerable",
            "what?",
            "[vqa] The question is 'what?' Based on the image, answer the question with a single word or phrase. and "
            "reply 'unanswerable' "
            "when the provided information is insufficient",
        ),
        ("hateful-meme", "haha", "This is an image writting 'haha'. Is this image hateful? Answer yes or no. Answer:"),
        ("instruction", "Why is it red?", "Why is it red?"),
    ],
)
def test_evaluation_prompts(task: str, content: str, expected: str):
    assert prompt_text(task, content) == "<Img><ImageHere></Img> " + expected


def test_describe_prompts():
    assert shipped_tasks()["describe"].instructions == (
        "Describe this image in detail.",
        "Take a look at this image and describe what you notice.",
        "Please provide a detailed description of the picture.",
        "Could you describe the contents of this image for me?",
    )


def test_instructions_have_placeholders():
    for name in ("refer", "identify", "vqa", "statement", "hateful-meme", "vqa-unanswerable"):
        assert all(instruction.count("{}") == 1 for instruction in shipped_tasks()[name].instructions), name
    for name in ("caption", "grounding", "describe"):
        assert all("{}" not in instruction for instruction in shipped_tasks()[name].instructions), name


def test_identify_prompt():
    assert (
        prompt_text("identify", "<box:0>", boxes=[(20, 10, 60, 40)])
        == "<Img><ImageHere></Img> [identify] what is this {<10><10><30><40>}"
    )


def test_adjacent_boxes_are_joined():
    one = sample(
        "detection",
        Turn("user", "dog"),
        Turn("assistant", "<p>dog</p> <box:1><box:0> x <box:0>"),
        boxes=[(0, 0, 20, 10), (20, 10, 60, 40)],
    )
    messages = render(one, random.Random(0))
    assert messages == [
        {"role": "user", "content": "<Img><ImageHere></Img> [detection] dog"},
        {"role": "assistant", "content": "<p>dog</p> {<10><10><30><40>}<delim>{<0><0><10><10>} x {<0><0><10><10>}"},
    ]


def test_instructions_are_drawn_uniformly():
    one = sample("refer", Turn("user", "it"), Turn("assistant", "<box:0>"), boxes=[(0, 0, 9, 9)])
    drawn = Counter(render(one, random.Random(seed))[0]["content"] for seed in range(1400))
    assert len(drawn) == 7
    assert min(drawn.values()) > 140
    assert render(one, random.Random(5)) == render(one, random.Random(5))


def test_answers_are_drawn_by_frequency():
    answers = ("2",) * 7 + ("two",) * 3
    one = sample("vqa", Turn("user", "how many?"), Turn("assistant", "2", answers))
    drawn = Counter(render(one, random.Random(seed))[1]["content"] for seed in range(1000))
    assert set(drawn) == {"2", "two"}
    assert 630 < drawn["2"] < 770


def test_box_is_written_on_the_scale_of_its_image():
    one = sample("refer", Turn("user", "cat"), Turn("assistant", "<box:0><box:1>"), boxes=[(0, 0, 100, 50)] * 2)
    two = one.revise(images=(IMAGE, SampleImage(b"other", 100, 50)), box_images=(0, 1))
    user, answer = render(two, random.Random(0))
    assert user["content"].startswith(2 * IMAGE_PREFIX + "[refer]")
    assert answer["content"] == "{<0><0><50><50>}<delim>{<0><0><100><100>}"


def test_image_precedes_the_first_turn():
    turns = [
        Turn("user", "What is it?"),
        Turn("assistant", "A dog."),
        Turn("user", "[refer] the dog"),
        Turn("assistant", "<box:0>"),
    ]
    messages = render(sample("instruction", *turns, boxes=[(0, 0, 200, 100)]), random.Random(0))
    assert [message["content"] for message in messages] == [
        IMAGE_PREFIX + "What is it?",
        "A dog.",
        "[refer] the dog",
        "{<0><0><100><100>}",
    ]
    assert [message["role"] for message in prompt(sample("instruction", *turns, boxes=[(0, 0, 200, 100)]))] == [
        "user",
        "assistant",
        "user",
    ]


def test_bare_captions_and_text():
    one = sample("caption", Turn("user", ""), Turn("assistant", "a dog"))
    assert render(one, random.Random(0), task="caption-bare") == [
        {"role": "user", "content": "<ImageHere>"},
        {"role": "assistant", "content": "a dog"},
    ]
    text = sample("text", Turn("user", "Add 1 and 1."), Turn("assistant", "2"), images=())
    assert render(text, random.Random(0))[0]["content"] == "Add 1 and 1."


def test_content_with_braces():
    assert prompt_text("vqa", "what is {} in {<1>}?").endswith("answer: what is {} in {<1>}?")


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (sample("nonsense", Turn("user", "")), "task 'nonsense' is unknown; use one of caption"),
        (sample("caption", Turn("user", ""), images=()), "has no image, which task 'caption' needs"),
        (sample("text", Turn("user", "")), "has an image; task 'text' takes none"),
        (
            sample("refer", Turn("user", "x"), Turn("assistant", "<box:0>"), boxes=[(0, 0, 300, 50)]),
            "outside its 200x100 image",
        ),
    ],
)
def test_invalid_samples(one: Sample, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        render(one, random.Random(0))


DETECTION_AS_JSON = """
detect-json:
  identifier: "[detection]"
  instructions: ["find every {} and answer in JSON"]
  items:
    template: '{"label": $label, "box": $box}'
    around: '[{}]'
    empty: '[]'
    quote: json
  boxes: {template: '[$x1, $y1, $x2, $y2]', scale: 1, decimals: 3, delimiter: ", "}
"""
TRIPLES = """
triples:
  image: false
  instructions: ["{}\\nList the facts of this table."]
  items: {template: "($subject | $relation | $object)", join: "\\n", empty: none}
"""


def test_json_detection_task(tmp_path):
    (tmp_path / "mine.yaml").write_text(DETECTION_AS_JSON)
    tasks = load_tasks(tmp_path / "mine.yaml")
    answer = json.dumps([{"label": 'a "red" circle', "box": "<box:0>"}, {"label": "cup", "box": "<box:1>"}])
    one = sample(
        "detect-json", Turn("user", "thing"), Turn("assistant", answer), boxes=[(20, 10, 60, 40), (0, 0, 200, 100)]
    )
    question, reply = render(one, random.Random(0), tasks=tasks)
    assert question["content"] == IMAGE_PREFIX + "[detection] find every thing and answer in JSON"
    assert json.loads(reply["content"]) == [
        {"label": 'a "red" circle', "box": [0.1, 0.1, 0.3, 0.4]},
        {"label": "cup", "box": [0, 0, 1, 1]},
    ]
    nothing = sample("detect-json", Turn("user", "thing"), Turn("assistant", "[]"))
    assert render(nothing, random.Random(0), tasks=tasks)[1]["content"] == "[]"


def test_triples_task(tmp_path):
    (tmp_path / "mine.yaml").write_text(TRIPLES)
    facts = [
        {"subject": "Oslo", "relation": "country", "object": "Norway"},
        {"subject": "Oslo", "relation": "people", "object": "700000"},
    ]
    one = sample("triples", Turn("user", "city,country\nOslo,Norway"), Turn("assistant", json.dumps(facts)), images=())
    question, reply = render(one, random.Random(0), tasks=load_tasks(tmp_path / "mine.yaml"))
    assert question["content"] == "city,country\nOslo,Norway\nList the facts of this table."
    assert reply["content"] == "(Oslo | country | Norway)\n(Oslo | people | 700000)"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('[{"subject": "a", "relation": "b"}]', "lacks the field 'object'"),
        ("Oslo is in Norway", "must be a JSON list of objects"),
        ('{"subject": "a"}', "must be a JSON list of objects"),
    ],
)
def test_invalid_items(tmp_path, answer: str, message: str):
    (tmp_path / "mine.yaml").write_text(TRIPLES)
    broken = sample("triples", Turn("user", "t"), Turn("assistant", answer), images=())
    with pytest.raises(ValueError, match=message):
        render(broken, random.Random(0), tasks=load_tasks(tmp_path / "mine.yaml"))


def test_all_errors_of_a_file_are_reported(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "caption: {instructions: ['x']}\nempty: {instructions: []}\nodd: {instructions: ['x'], colour: red}\n"
        "boxed: {instructions: ['x'], boxes: {template: '$x1'}}\n"
        "items: {instructions: ['x'], items: {template: '5 $'}}\n"
    )
    with pytest.raises(ValueError, match="caption: the name is taken") as error:
        load_tasks(tmp_path / "mine.yaml")
    for part in (
        "empty: instructions: the pool is empty",
        "odd: unknown key colour",
        "boxed: boxes.template",
        "items: items.template",
    ):
        assert part in str(error.value)
