import pytest
from pydantic import ValidationError

from mgpt.captioning.filters import Filters, foreign_share
from mgpt.config.evaluation import FilterSettings

SOUND = "There is a red circle at the top of the image, and a cross."


@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        (SOUND, 0.0, ""),
        ("I'm sorry I made a mistake. " + SOUND, 0.0, "apology"),
        ("I’m sorry. " + SOUND, 0.0, "apology"),
        ("A red circle is here.", 0.0, "too_short"),
        (SOUND * 40, 0.0, "too_long"),
        ("Там есть красный круг в верхней части картинки, и крест рядом.", 0.0, "not_english"),
        (SOUND + " " + SOUND, 0.0, "still_repetition"),
        (SOUND[:-1], 0.0, "still_unfinished"),
        (SOUND, 0.9, "changed_too_much"),
    ],
)
def test_reasons(text, change, reason):
    assert Filters(FilterSettings()).reason(text, change) == reason


def test_only_so_many_images_may_share_a_description():
    filters = Filters(FilterSettings(maximum_same=2))
    assert [filters.reason(SOUND, 0.0) for _ in range(3)] == ["", "", "same_as_others"]


@pytest.mark.parametrize(
    ("caption", "share", "reason"),
    [
        ("a red circle and a cross", 1.0, ""),
        ("an image of a small red disc", 1.0, ""),
        ("a red circle, a red circle and a cross", 1.0, "misses_objects"),  # two of a kind are two objects
        ("a red circle, a red circle and a cross", 0.6, ""),
        ("a blue circle", 0.1, "misses_objects"),
        ("a quiet evening", 1.0, ""),
    ],
)
def test_a_description_must_name_what_its_caption_names(caption, share, reason):
    assert Filters(FilterSettings(minimum_named=share, vocabulary="shapes")).reason(SOUND, 0.0, caption) == reason
    assert Filters(FilterSettings()).reason(SOUND, 0.0, caption) == ""


def test_named_objects_need_a_vocabulary():
    with pytest.raises(ValidationError, match="needs a vocabulary"):
        FilterSettings(minimum_named=0.5)


def test_accents_are_latin():
    assert foreign_share("café naïve Ångström") == 0.0
    assert foreign_share("ab яю") == 0.5
    assert foreign_share("12 !") == 0.0
