"""`chat` and `predict` with a registered model and with a folder of weights."""

import json
import re
import shutil

import pytest
from PIL import Image

from mgpt.cli.main import main
from mgpt.registry.versions import find
from mgpt.serving.chat import chat, predict
from mgpt.serving.images import sample_image
from tests.fixtures.project import ROOT
from tests.fixtures.registry import BOX_ANSWER, BOX_PROMPT, MODEL


@pytest.fixture
def image(tmp_path):
    sample_image().save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def champion(registry):
    return find(registry.uri, f"models:/{MODEL}@champion").weights


def test_chat_writes_image_with_box(registry, image, champion):
    reply, written = chat(image, BOX_PROMPT, champion, registry.store)
    assert reply.text == BOX_ANSWER
    assert written == image.with_name("scene-answer.png")
    drawn = Image.open(written).convert("RGB")
    assert drawn.size == (672, 672)
    assert drawn.getpixel((68, 400)) == (0xD5, 0x5E, 0x00)  # the left edge at 10 % of the width


def test_chat_writes_to_given_output(all_weights, image):
    _, written = chat(image, BOX_PROMPT, all_weights[0], output=image.parent / "new/out.jpg")
    assert Image.open(written).size == (672, 672)


def test_no_file_without_boxes_and_output(all_weights, image):
    reply, written = chat(image, "hello", all_weights[1])
    assert (reply.boxes, written) == ((), None)
    assert [file.name for file in image.parent.glob("*.png")] == ["scene.png"]


def test_unwritable_output_is_refused(all_weights, image):
    with pytest.raises(ValueError, match=r"out\.nonsense: the image cannot be written"):
        chat(image, "hello", all_weights[0], output=image.parent / "out.nonsense")


def test_predict_answers_every_line(registry, image, predictor, champion):
    questions, answers = image.parent / "questions.jsonl", image.parent / "answers.jsonl"
    rows = [
        {"image": "scene.png", "prompt": "[vqa] what is this?", "key": 7},
        {"image": str(image), "prompt": "[refer] a circle"},
    ]
    questions.write_text("\n\n".join(map(json.dumps, rows)))
    assert predict(questions, answers, champion, registry.store, 8) == 2
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["text"] for row in written] == [predictor.answer(sample_image(), row["prompt"], 8).text for row in rows]
    assert written[0]["key"] == 7
    assert set(written[1]) == {"image", "prompt", "text", "plain", "boxes", "finished"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no questions"),
        ("{", "questions.jsonl:1: not a question"),
        ('\n{"image": "scene.png"}', "questions.jsonl:2: not a question"),
        ('{"image": "scene.png", "prompt": 1}', "must be strings"),
        ('{"image": "none.png", "prompt": "a"}', "question 0: .*none.png: no such image"),
    ],
)
def test_bad_questions_leave_no_answers(all_weights, image, content, message):
    questions, answers = image.parent / "questions.jsonl", image.parent / "answers.jsonl"
    questions.write_text(content)
    with pytest.raises(ValueError, match=message):
        predict(questions, answers, all_weights[0])
    assert not answers.exists()


def test_command_reports_user_error_with_code_2(registry, tmp_path, monkeypatch, capsys):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGPT_STORAGE__ROOT", registry.store.root)
    monkeypatch.setenv("MGPT_TRACKING__URI", registry.uri)
    assert main(["chat", "--image", str(tmp_path / "none.png"), "--prompt", "a"]) == 2
    assert "no such image" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert re.search(r"minigpt-v2\D+1\D+champion", capsys.readouterr().out)
