"""Readers of visual question answering data."""

import pytest

from mgpt.data.types import Turn

ANSWERS = ["net", "net", "net", "netting", "net", "net", "mesh", "net", "net", "net"]
ROW = {
    "image": "val2014/COCO_val2014_000000262148.jpg",
    "question": "What is behind?",
    "question_id": 262148000,
    "answer": ANSWERS,
    "dataset": "vqa",
}


@pytest.mark.parametrize("place", ["val2014/", "images/val2014/", "images/", ""])
def test_vqav2(dataset, place: str):
    dataset.image(f"{place}COCO_val2014_000000262148.jpg")
    dataset.file("vqa_train.json", [ROW])
    (sample,) = dataset.samples("vqav2")
    assert sample.turns == (Turn("user", "What is behind?"), Turn("assistant", "net", tuple(ANSWERS)))
    assert (sample.split, sample.task, sample.source, sample.extra) == ("train", "vqa", "vqa_train.json#262148000", {})


def test_vqav2_reject_reasons(dataset):
    dataset.image("COCO_val2014_000000262148.jpg")
    rows = [
        ROW | {"question_id": 1, "image": "train2014/COCO_train2014_000000000001.jpg"},
        ROW | {"question_id": 2, "answer": []},
        {"question_id": 3, "image": ROW["image"], "answer": ANSWERS},
        ROW | {"question_id": 4, "image": "../secret.jpg"},
        ROW | {"question_id": 5, "answer": "net"},
        ROW,
    ]
    dataset.file("vqa_val.json", rows)
    *problems, sample = dataset.read("vqav2")
    assert [(problem.source.split("#")[1], problem.reason) for problem in problems] == [
        ("1", "missing image"),
        ("2", "missing answer"),
        ("3", "missing field"),
        ("4", "path outside the dataset's folder"),
        ("5", "missing field"),
    ]
    assert (sample.split, sample.extra) == ("validation", {"key": "262148000"})


def test_link_out_of_folder(dataset, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    outside.write_bytes(b"secret")
    dataset.file("vqa_train.json", [ROW])
    (dataset.root / "val2014").mkdir()
    (dataset.root / ROW["image"]).symlink_to(outside)
    assert dataset.reasons("vqav2") == [("vqa_train.json#262148000", "path outside the dataset's folder")]


def test_okvqa(dataset):
    dataset.image("val2014/COCO_val2014_000000262148.jpg")
    dataset.file("okvqa_train.json", [ROW])
    (sample,) = dataset.samples("okvqa")
    assert (sample.dataset, len(sample.references)) == ("okvqa", 10)


AOKVQA = {
    "question": "What is it?",
    "question_id": "22MexNkBPpdZGX6sxbxVBH",
    "choices": ["a", "b", "c", "d"],
    "correct_choice_idx": 3,
    "direct_answers": ["ride", "ride", "bike"],
    "rationales": ["r"],
}


@pytest.mark.parametrize(
    ("naming", "path"),
    [
        ({"image": "train2014/COCO_train2014_000000299207.jpg"}, "train2014/COCO_train2014_000000299207.jpg"),
        ({"image_id": 299207}, "train2017/000000299207.jpg"),
        ({"image": None, "image_id": 299207}, "val2017/000000299207.jpg"),
        ({"image_id": "000000299207"}, "000000299207.jpg"),
    ],
)
def test_aokvqa_layouts(dataset, naming, path: str):
    dataset.image(path)
    dataset.file("aokvqa_v1p0_train.json", [AOKVQA | naming])
    dataset.file("aokvqa_v1p0_val.json", [AOKVQA | naming])
    dataset.file(
        "aokvqa_v1p0_test.json", [{name: AOKVQA[name] for name in ("question", "question_id", "choices")} | naming]
    )
    problem, train, validation = dataset.read("aokvqa")
    assert (problem.split, problem.reason) == ("test", "missing answer")
    assert train.turns == (Turn("user", "What is it?"), Turn("assistant", "ride", ("ride", "ride", "bike")))
    assert validation.extra == {"key": "22MexNkBPpdZGX6sxbxVBH", "choices": ["a", "b", "c", "d"]}


def test_aokvqa_without_image_name(dataset):
    dataset.file("aokvqa_v1p0_train.json", [AOKVQA])
    assert dataset.reasons("aokvqa") == [("aokvqa_v1p0_train.json#22MexNkBPpdZGX6sxbxVBH", "missing field")]


def test_gqa_layouts(dataset, turn_texts):
    dataset.image("images/2354786.jpg")
    dataset.file(
        "train_balanced_questions.json",
        [{"image": "2354786.jpg", "question": "Is it overcast?", "answer": "no", "question_id": "02930152"}],
    )
    dataset.file(
        "testdev_balanced_questions.json",
        {"00777": {"imageId": "2354786", "question": "Who?", "answer": "man", "isBalanced": True}},
    )
    testdev, train = dataset.samples("gqa")
    assert (train.source, turn_texts(train)) == (
        "train_balanced_questions.json#02930152",
        [("user", "Is it overcast?"), ("assistant", "no")],
    )
    assert (testdev.split, testdev.extra, turn_texts(testdev)) == (
        "testdev",
        {"key": "00777"},
        [("user", "Who?"), ("assistant", "man")],
    )


def test_ocrvqa(dataset):
    dataset.image("images/0001047655.jpg")
    book = {
        "imageURL": "http://x/51iNIsGIWoL._SX1_.jpg",
        "questions": ["Who wrote it?", "Which genre?"],
        "answers": ["Ann", "Law"],
        "title": "T",
        "split": 1,
    }
    dataset.file(
        "dataset.json",
        {
            "0001047655": book,
            "7": book | {"split": 3},
            "8": book | {"answers": ["x"]},
            "9": book | {"split": 4},
            "10": {"split": 1},
        },
    )
    records = dataset.read("ocrvqa")
    assert [(record.split, record.source, record.turns[1].text) for record in records[:2]] == [
        ("train", "dataset.json#0001047655/0", "Ann"),
        ("train", "dataset.json#0001047655/1", "Law"),
    ]
    assert [(record.source.split("#")[1], record.reason) for record in records[2:]] == [
        ("7/0", "missing image"),
        ("7/1", "missing image"),
        ("8/0", "missing image"),
        ("8/1", "missing answer"),
        ("9/0", "missing field"),
        ("9/1", "missing field"),
        ("10/0", "missing field"),
    ]
