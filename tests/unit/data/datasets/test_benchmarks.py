"""Readers of evaluation sets."""

import json

from mgpt.data.tasks import prompt


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_okvqa(dataset):
    dataset.image("val2014/COCO_val2014_000000297147.jpg")
    question = {"image_id": 297147, "question": "What sport?", "question_id": 2971475}
    dataset.file("okvqa_test_split.json", [question, question | {"question_id": 9}, "no question"])
    answers = [{"answer_id": n, "answer": "race", "raw_answer": "racing"} for n in range(1, 11)]
    dataset.file(
        "mscoco_val2014_annotations.json",
        {"info": {}, "annotations": [{"question_id": 2971475, "image_id": 297147, "answers": answers}]},
    )
    sample, problem, damaged = dataset.read("okvqa_evaluation")
    assert (damaged.source, damaged.reason) == ("okvqa_test_split.json#2", "missing field")
    assert (sample.split, sample.references, sample.extra) == ("test", ("race",) * 10, {"key": "2971475"})
    assert (problem.source, problem.reason) == ("okvqa_test_split.json#9", "missing answer")
    (dataset.root / "mscoco_val2014_annotations.json").unlink()
    (problem,) = dataset.read("okvqa_evaluation")
    assert problem.reason == "unreadable file"
    assert "annotations" in problem.detail


def test_vsr(dataset, turn_texts):
    dataset.image("images/train2017/000000085637.jpg")
    row = {
        "image": "000000085637.jpg",
        "image_link": "http://x",
        "caption": "The cat is at the left side of the bed.",
        "label": 1,
        "relation": "at the left",
    }
    dataset.file("test.jsonl", lines(row, row | {"label": 0}, row | {"label": "true"}) + "{broken\n")
    true, false, *problems = dataset.read("vsr")
    assert turn_texts(true) == [("user", row["caption"]), ("assistant", "true")]
    assert turn_texts(false)[1] == ("assistant", "false")
    assert (true.split, true.task, true.extra) == (
        "test",
        "statement",
        {"key": "1", "choices": ["true", "false"], "kind": "at the left"},
    )
    assert [problem.reason for problem in problems] == ["missing answer", "unreadable record"]


def test_iconvqa(dataset, turn_texts):
    dataset.image("107/image.png")
    row = {"image_id": "107", "question": "Which is next?", "choices": ["a_b", "c"], "answer": 1}
    dataset.file("choose_text_val.json", [row, row | {"answer": 2}, row | {"answer": "c"}, row | {"image_id": "108"}])
    sample, *problems = dataset.read("iconvqa")
    assert (turn_texts(sample)[1], sample.extra["choices"], sample.split) == (
        ("assistant", "c"),
        ["a_b", "c"],
        "validation",
    )
    assert [problem.reason for problem in problems] == ["missing answer", "missing answer", "missing image"]


def test_vizwiz(dataset):
    dataset.image("val/VizWiz_val_00000000.jpg")
    answers = [{"answer": "basil", "answer_confidence": "yes"}] * 4 + [
        {"answer": "unanswerable", "answer_confidence": "no"}
    ] * 6
    row = {"image": "VizWiz_val_00000000.jpg", "question": "What is this?", "answers": answers, "answerable": 1}
    dataset.file("val.json", [row, row | {"answers": None}])
    sample, problem = dataset.read("vizwiz")
    assert (sample.task, sample.turns[1].text, sample.references.count("basil")) == (
        "vqa-unanswerable",
        "unanswerable",
        4,
    )
    assert sample.extra == {"key": "VizWiz_val_00000000.jpg"}
    assert problem.reason == "missing answer"


def test_hateful_memes(dataset, turn_texts):
    dataset.image("img/08291.png")
    row = {"id": "08291", "img": "img/08291.png", "label": 1, "text": 'it\'s "fine"'}
    dataset.file(
        "dev.jsonl",
        lines(
            row,
            row | {"id": 46971, "label": 0, "img": "img/46971.png"},
            {"id": 1, "img": "img/08291.png", "text": "test"},
        ),
    )
    sample, *problems = dataset.read("hateful_memes")
    assert (sample.split, sample.extra["key"], turn_texts(sample)[1]) == ("validation", "08291", ("assistant", "yes"))
    assert prompt(sample)[0]["content"].endswith(
        "This is an image writting 'it's \"fine\"'. Is this image hateful? Answer yes or no. Answer:"
    )
    assert [problem.reason for problem in problems] == ["missing image", "missing answer"]
