"""Readers of LLaVA's files, multi-task conversations and Unnatural Instructions."""

import json

import pytest

from mgpt.data.boxes import Box

TALK = [
    {"from": "human", "value": "What colour is\nthe bus?\n<image>"},
    {"from": "gpt", "value": "White: and\nred."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "Paint."},
]
ROW = {"id": "000000033471", "image": "000000033471.jpg", "conversations": TALK}


@pytest.mark.parametrize(
    "path", ["train2014/COCO_train2014_000000033471.jpg", "000000033471.jpg", "images/train2017/000000033471.jpg"]
)
def test_llava_conversation(dataset, turn_texts, path: str):
    dataset.image(path)
    dataset.file("conversation_58k.json", [ROW])
    (sample,) = dataset.samples("llava_conversation")
    assert sample.task == "instruction"
    assert turn_texts(sample) == [
        ("user", "What colour is\nthe bus?"),
        ("assistant", "White: and\nred."),
        ("user", "Why?"),
        ("assistant", "Paint."),
    ]


@pytest.mark.parametrize(
    ("reader", "file"), [("llava_detail", "detail_23k.json"), ("llava_reason", "complex_reasoning_77k.json")]
)
def test_llava_first_turn(dataset, turn_texts, reader: str, file: str):
    dataset.image("COCO_train2014_000000033471.jpg")
    dataset.file(file, [ROW, ROW | {"conversations": TALK[:3]}])
    for sample in dataset.samples(reader):
        assert turn_texts(sample) == [("user", "What colour isthe bus?"), ("assistant", "White: and\nred.")]


def test_conversation_reject_reasons(dataset):
    dataset.image("COCO_train2014_000000033471.jpg")
    rows = [
        ROW | {"conversations": TALK[:3]},
        ROW | {"conversations": []},
        ROW | {"conversations": TALK[::-1]},
        ROW | {"id": "000000000001", "image": 5},
        ROW | {"conversations": [{"from": "human"}]},
        {"image": "x.jpg", "conversations": TALK},
    ]
    dataset.file("conversation_58k.json", rows)
    reasons = [reason for _, reason in dataset.reasons("llava_conversation")]
    assert reasons == [
        "missing answer",
        "missing field",
        "missing answer",
        "missing image",
        "missing field",
        "missing field",
    ]


@pytest.mark.parametrize("file", ["multitask_conversation.json", "multi_task_conversation.json"])
def test_multitask_conversation(dataset, turn_texts, file: str):
    dataset.image("COCO_train2014_000000033471.jpg", 200, 100)
    talk = [
        {"from": "human", "value": "[refer] the bus"},
        {"from": "gpt", "value": "<p>bus</p> {<10><20><50><60>}<delim>{<0><0><1><1>}"},
        {"from": "human", "value": "[identify] {<10><20><50><60>}"},
        {"from": "gpt", "value": "a bus"},
    ]
    dataset.file(
        file,
        [
            ROW | {"conversations": talk},
            ROW | {"conversations": [talk[0], {"from": "gpt", "value": "{<10><20><5><60>}"}]},
        ],
    )
    sample, problem = dataset.read("multitask_conversation")
    assert [text for _, text in turn_texts(sample)] == [
        "[refer] the bus",
        "<p>bus</p> <box:0><box:1>",
        "[identify] <box:2>",
        "a bus",
    ]
    assert sample.boxes == (Box(20, 20, 100, 60), Box(0, 0, 2, 1), Box(20, 20, 100, 60))
    assert problem.reason == "unreadable record"


INSTANCE = {"instruction_with_input": "Sort: b, a.", "input": "b, a", "constraints": "Use commas.", "output": "a, b"}


@pytest.mark.parametrize("lines", [False, True])
def test_unnatural_instructions(dataset, turn_texts, lines: bool):
    rows = [
        {"instances": [INSTANCE, {}]},
        {"instances": [INSTANCE | {"constraints": None}]},
        {"instances": []},
        {"instances": [INSTANCE | {"output": ""}]},
    ]
    if lines:
        dataset.file("core_data.jsonl", "\n\n".join(map(json.dumps, rows)))
    else:
        dataset.file("unnatural_instructions.json", rows)
    first, second, *problems = dataset.read("unnatural_instructions")
    assert (first.images, first.task) == ((), "text")
    assert turn_texts(first) == [("user", "Sort: b, a. Use commas."), ("assistant", "a, b")]
    assert turn_texts(second)[0] == ("user", "Sort: b, a.")
    assert [problem.reason for problem in problems] == ["missing field", "missing answer"]
