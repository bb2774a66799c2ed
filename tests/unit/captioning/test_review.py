import pytest

from mgpt.captioning.review import COLUMNS, ReviewRow, digest, read_review, write_review

ROW = ReviewRow("abc", "accept", 'A "red" circle,\nand more.', "", 0.25, "form", "a red", "shapes/x", digest("a red"))


def test_review_round_trip(tmp_path):
    (tmp_path / "review.csv").write_bytes(write_review([ROW]))
    assert read_review(tmp_path / "review.csv") == {"abc": ROW}


def test_byte_order_mark_and_capitals_are_accepted(tmp_path):
    content = write_review([ROW]).decode().replace(",accept,", ", Accept ,")
    (tmp_path / "review.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_review(tmp_path / "review.csv")["abc"].decision == "accept"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",accept,", ",maybe,"), "line 3: .*'maybe'"),
        (lambda text: text.replace("decision", "verdict"), "column decision"),
        (lambda text: text + text.split("\n", 1)[1], "key abc occurs twice"),
        (lambda text: text.replace("0.250", "some"), "change 'some'"),
        (lambda text: ",".join(COLUMNS) + "\nabc,accept,,,,,,,\n", "no text"),
    ],
)
def test_invalid_review_is_refused(tmp_path, change, message):
    (tmp_path / "review.csv").write_text(change(write_review([ROW]).decode()))
    with pytest.raises(ValueError, match=message):
        read_review(tmp_path / "review.csv")


def test_encoding_other_than_utf8_is_refused(tmp_path):
    (tmp_path / "review.csv").write_bytes(write_review([ROW]) + "é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_review(tmp_path / "review.csv")
