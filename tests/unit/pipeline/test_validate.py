"""Validation of a user's own data before training."""

import re

import pytest

from mgpt.pipeline.validate import ValidationError, validate
from tests.fixtures.worlds import encoded, photo, write_own


def test_valid_data_shows_counts_and_conversations(tmp_path):
    rows = [
        {"image": "a.jpg", "caption": "a blurred image"},
        {"image": "a.jpg", "expression": "the left half", "box": [0, 0, 24, 40]},
    ]
    write_own(tmp_path, rows, {"a.jpg": encoded(photo(1))})
    text = validate(tmp_path).text()
    assert "2 records, 2 usable, 0 not" in text
    assert "»a blurred image\n" in text
    assert "»{<0><0><50><100>}\n" in text
    assert "[refer]" in text
    assert text.count("trained on as:") == 2, "one sample of each task"


def test_one_file_of_a_folder(tmp_path):
    write_own(tmp_path, [{"image": "a.jpg", "caption": "a blurred image"}], {"a.jpg": encoded(photo(1))})
    write_own(tmp_path, [{"image": "none.jpg", "caption": "gone"}], {}, "other.jsonl")
    assert validate(tmp_path / "train.jsonl").report["records"] == 1
    with pytest.raises(ValidationError, match="0 samples"):
        validate(tmp_path / "other.jsonl")


def test_missing_images_fail_with_the_first_five_rows(tmp_path):
    rows = [{"image": f"none{number}.jpg", "caption": "a blurred image"} for number in range(7)]
    write_own(tmp_path, [{"image": "a.jpg", "caption": "a blurred image"}, *rows], {"a.jpg": encoded(photo(1))})
    with pytest.raises(ValidationError) as failure:
        validate(tmp_path)
    message = str(failure.value)
    assert "7 images are missing" in message
    assert message.count("no file none") == 5


def test_fatal_rows_come_first(tmp_path):
    rows = [{"image": "a.jpg", "caption": f"http://a/{number}"} for number in range(9)]
    rows += [{"image": "a.jpg", "caption": "a blurred image"}, {"image": "none.jpg", "caption": "a blurred image"}]
    write_own(tmp_path, rows, {"a.jpg": encoded(photo(1))})
    with pytest.raises(ValidationError, match="1 images are missing") as failure:
        validate(tmp_path)
    assert re.search(r"first rejected rows:\n  train\.jsonl#11: missing image", str(failure.value))
    assert str(failure.value).count("junk text (") == 4


def test_no_usable_sample_fails(tmp_path):
    write_own(tmp_path, [{"image": "a.jpg", "caption": ""}], {"a.jpg": encoded(photo(1))})
    with pytest.raises(ValidationError, match=r"0 samples[\s\S]*missing answer"):
        validate(tmp_path)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        validate(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="reader 'x' is not known; use one of"):
        validate(tmp_path, "x")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare has no files; put a JSONL file there"):
        validate(tmp_path / "bare")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"jsonl: no \*\.jsonl below"):
        validate(tmp_path)
