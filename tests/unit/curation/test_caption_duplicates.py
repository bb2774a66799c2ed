"""Near-duplicate captions."""

from mgpt.curation.caption_duplicates import find_duplicate_captions


def test_first_of_near_duplicates_stays():
    texts = [
        "a man in a red coat walks his small dog along the sandy beach at sunset",
        "two cats sleep",
        "A man in a red coat, walks his small dog along the sandy beach at sunset!",
        "a man in a red coat walks his small dog along the sandy beach at sunset today",
        "a bowl of soup",
        "Two cats sleep.",
    ]
    assert find_duplicate_captions(texts, 0.7) == [None, None, 0, 0, None, 1]


def test_threshold_is_respected():
    texts = ["a b c d e f g h", "a b c d x y z w"]
    assert find_duplicate_captions(texts, 0.9) == [None, None]


def test_empty_texts_are_duplicates():
    assert find_duplicate_captions(["", "...", "x"], 0.9) == [None, 0, None]
