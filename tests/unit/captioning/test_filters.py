import pytest
from pydantic import ValidationError

from mgpt.captioning.filters import Filters, non_latin_share
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
        ("Там есть красный круг в верхней части картинки, и крест рядом.", 0.0, "non_latin_script"),
        (SOUND + " " + SOUND, 0.0, "still_repetition"),
        (SOUND[:-1], 0.0, "still_unfinished"),
        (SOUND, 0.9, "changed_too_much"),
    ],
)
def test_reject_reasons(text, change, reason):
    assert Filters(FilterSettings()).reject_reason(text, change) == reason


def test_repeated_description_is_rejected():
    filters = Filters(FilterSettings(maximum_same=2))
    assert [filters.reject_reason(SOUND, 0.0) for _ in range(3)] == ["", "", "same_as_others"]


@pytest.mark.parametrize(
    ("caption", "share", "reason"),
    [
        ("a red circle and a cross", 1.0, ""),
        ("an image of a small red disc", 1.0, ""),
        ("a red circle, a red circle and a cross", 1.0, "misses_objects"),  # two instances are two objects
        ("a red circle, a red circle and a cross", 0.6, ""),
        ("a blue circle", 0.1, "misses_objects"),
        ("a quiet evening", 1.0, ""),
    ],
)
def test_description_must_name_the_objects_of_its_caption(caption, share, reason):
    assert (
        Filters(FilterSettings(minimum_named=share, vocabulary="shapes")).reject_reason(SOUND, 0.0, caption) == reason
    )
    assert Filters(FilterSettings()).reject_reason(SOUND, 0.0, caption) == ""


def test_named_objects_need_a_vocabulary():
    with pytest.raises(ValidationError, match="needs a vocabulary"):
        FilterSettings(minimum_named=0.5)


def test_accented_letters_are_latin():
    assert non_latin_share("café naïve Ångström") == 0.0
    assert non_latin_share("ab яю") == 0.5
    assert non_latin_share("12 !") == 0.0
