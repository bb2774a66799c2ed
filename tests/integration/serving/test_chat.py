import json
import re

import pytest
from PIL import Image

from mgpt.cli.main import main
from mgpt.serving.chat import chat, predict
from mgpt.serving.images import sample_image
from tests.fixtures.registry import BOX_ANSWER, BOX_PROMPT, SYSTEM


@pytest.fixture
def image(tmp_path):
    sample_image().save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_chat_answers_and_writes_the_image_with_its_box(registry, image):
    reply, written = chat(image, BOX_PROMPT, registry.uri, f"models:/{SYSTEM}@champion")
    assert reply.text == BOX_ANSWER
    assert written == image.with_name("scene-answer.png")
    drawn = Image.open(written).convert("RGB")
    assert drawn.size == (672, 672)
    assert drawn.getpixel((68, 400)) == (0xD5, 0x5E, 0x00)  # the left edge at 10 % of the width


def test_the_image_goes_where_it_is_asked_for(registry, image):
    _, written = chat(image, BOX_PROMPT, registry.uri, str(registry.weights[0]), image.parent / "new/out.jpg")
    assert Image.open(written).size == (672, 672)


def test_without_boxes_and_output_no_file_is_written(registry, image):
    reply, written = chat(image, "hello", registry.uri, str(registry.weights[1]))
    assert (reply.boxes, written) == ((), None)
    assert [file.name for file in image.parent.glob("*.png")] == ["scene.png"]


def test_a_image_that_cannot_be_written_is_an_error(registry, image):
    with pytest.raises(ValueError, match=r"out\.nonsense: the picture cannot be written"):
        chat(image, "hello", registry.uri, str(registry.weights[0]), image.parent / "out.nonsense")


def test_predict_answers_every_line(registry, image, predictor):
    questions, answers = image.parent / "questions.jsonl", image.parent / "answers.jsonl"
    rows = [
        {"image": "scene.png", "prompt": "[vqa] what is this?", "key": 7},
        {"image": str(image), "prompt": "[refer] a circle"},
    ]
    questions.write_text("\n\n".join(map(json.dumps, rows)))
    assert predict(questions, answers, registry.uri, f"models:/{SYSTEM}@champion", 8) == 2
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["text"] for row in written] == [predictor.answer(sample_image(), row["prompt"], 8).text for row in rows]
    assert written[0]["key"] == 7
    assert set(written[1]) == {"image", "prompt", "text", "plain", "boxes", "finished"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no question in it"),
        ("{", "questions.jsonl:1: not a question"),
        ('\n{"image": "scene.png"}', "questions.jsonl:2: not a question"),
        ('{"image": "scene.png", "prompt": 1}', "must be texts"),
        ('{"image": "none.png", "prompt": "a"}', "question 0: .*none.png: no such image"),
    ],
)
def test_bad_questions_leave_no_answers(registry, image, content, message):
    questions, answers = image.parent / "questions.jsonl", image.parent / "answers.jsonl"
    questions.write_text(content)
    with pytest.raises(ValueError, match=message):
        predict(questions, answers, registry.uri, str(registry.weights[0]))
    assert not answers.exists()


def test_the_command_line_reports_a_mistake_with_code_2(registry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mgpt.cli.chat.tracking_uri", lambda: registry.uri)
    assert main(["chat", "--image", str(tmp_path / "none.png"), "--prompt", "a"]) == 2
    assert "no such image" in capsys.readouterr().err
    monkeypatch.setattr("mgpt.cli.registry.tracking_uri", lambda: registry.uri)
    assert main(["models"]) == 0
    assert re.search(r"minigpt-v2 +1 +champion", capsys.readouterr().out)
