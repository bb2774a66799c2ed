"""Filters of repaired descriptions, each with a reject reason."""

from __future__ import annotations

import unicodedata
from collections import Counter

from mgpt.config.evaluation import FilterSettings
from mgpt.data.text_utils import sentences, words
from mgpt.data.vocabulary import load_vocabulary
from mgpt.inference.degeneration import degeneration_kinds

# Apologies of the repairing model, which the paper names among its leftovers.
APOLOGIES = (
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "i apologise",
    "as an ai",
    "i made a mistake",
    "i cannot see",
    "i can't see",
)


class Filters:
    """The filters of one run. Stateful: counts equal descriptions."""

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self.seen: Counter[str] = Counter()

    def reject_reason(self, text: str, change: float, caption: str = "") -> str:
        """Returns the name of the first rule that a description breaks, or an empty string.

        Args:
            change: share of its words that repair removed or replaced, 0..1.
            caption: the first caption of its image.
        """
        settings = self.settings
        lowered = text.lower().replace("’", "'")
        broken = degeneration_kinds(text, True)
        rules = (
            ("apology", any(apology in lowered for apology in APOLOGIES)),
            ("too_short", len(text) < settings.minimum_characters or len(sentences(text)) < settings.minimum_sentences),
            ("too_long", len(text) > settings.maximum_characters),
            ("non_latin_script", non_latin_share(text) > settings.maximum_foreign),
            (f"still_{broken[0]}" if broken else "", bool(broken)),
            ("changed_too_much", change > settings.maximum_change),
            (
                "misses_objects",
                bool(settings.minimum_named) and self._named_share(text, caption) < settings.minimum_named,
            ),
            ("same_as_others", self._is_too_common(text)),
        )
        return next((name for name, breaks in rules if breaks), "")

    def _named_share(self, text: str, caption: str) -> float:
        """Computes the share of the caption's objects that the text names, 0..1; 1 for a caption without objects."""
        vocabulary = load_vocabulary(self.settings.vocabulary)
        expected, named = Counter(vocabulary.mentions(caption)), Counter(vocabulary.mentions(text))
        return (expected & named).total() / expected.total() if expected else 1.0

    def _is_too_common(self, text: str) -> bool:
        key = " ".join(words(text))
        self.seen[key] += 1
        return self.seen[key] > self.settings.maximum_same


def non_latin_share(text: str) -> float:
    """Computes the share of letters outside the Latin script, 0..1; 0 for a text without letters."""
    letters = [letter for letter in text if letter.isalpha()]
    others = [letter for letter in letters if not unicodedata.name(letter, "").startswith("LATIN")]
    return len(others) / len(letters) if letters else 0.0
