import pytest

from mgpt.captioning.review import COLUMNS, ReviewRow, digest, read_review, write_review

ROW = ReviewRow("abc", "accept", 'A "red" circle,\nand more.', "", 0.25, "form", "a red", "shapes/x", digest("a red"))


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "review.csv").write_bytes(write_review([ROW]))
    assert read_review(tmp_path / "review.csv") == {"abc": ROW}


def test_a_spreadsheets_mark_and_capitals_are_fine(tmp_path):
    content = write_review([ROW]).decode().replace(",accept,", ", Accept ,")
    (tmp_path / "review.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_review(tmp_path / "review.csv")["abc"].decision == "accept"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",accept,", ",maybe,"), "line 3: the decision 'maybe'"),
        (lambda text: text.replace("decision", "verdict"), "lacks the columns decision"),
        (lambda text: text + text.split("\n", 1)[1], "the key abc stands twice"),
        (lambda text: text.replace("0.250", "some"), "the change 'some' is not a number"),
        (lambda text: ",".join(COLUMNS) + "\nabc,accept,,,,,,,\n", "no text"),
    ],
)
def test_a_file_that_is_no_review_is_refused(tmp_path, change, message):
    (tmp_path / "review.csv").write_text(change(write_review([ROW]).decode()))
    with pytest.raises(ValueError, match=message):
        read_review(tmp_path / "review.csv")


def test_another_encoding_is_refused(tmp_path):
    (tmp_path / "review.csv").write_bytes(write_review([ROW]) + "é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_review(tmp_path / "review.csv")
