"""Which mended descriptions survive, and why the others do not."""

from __future__ import annotations

import unicodedata
from collections import Counter

from mgpt.config.evaluation import FilterSettings
from mgpt.data.text_utils import sentences, words
from mgpt.data.vocabulary import load_vocabulary
from mgpt.inference.degeneration import degeneration_kinds

# Kinds of leftovers that the paper names: the repairing model's own apologies.
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
    """Stateful over one run: it counts equal descriptions."""

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self.seen: Counter[str] = Counter()

    def reason(self, text: str, change: float, caption: str = "") -> str:
        """Why a description goes, whose image came with `caption`; an empty string for one that stays. The first rule that it breaks is
        named."""
        settings = self.settings
        lowered = text.lower().replace("’", "'")
        broken = degeneration_kinds(text, True)
        rules = (
            ("apology", any(apology in lowered for apology in APOLOGIES)),
            ("too_short", len(text) < settings.minimum_characters or len(sentences(text)) < settings.minimum_sentences),
            ("too_long", len(text) > settings.maximum_characters),
            ("not_english", foreign_share(text) > settings.maximum_foreign),
            (f"still_{broken[0]}" if broken else "", bool(broken)),
            ("changed_too_much", change > settings.maximum_change),
            ("misses_objects", bool(settings.minimum_named) and self._named(text, caption) < settings.minimum_named),
            ("same_as_others", self._is_too_common(text)),
        )
        return next((name for name, breaks in rules if breaks), "")

    def _named(self, text: str, caption: str) -> float:
        """Share of the caption's objects that the text names, 0..1; 1 for a caption without any."""
        vocabulary = load_vocabulary(self.settings.vocabulary)
        wanted, said = Counter(vocabulary.mentions(caption)), Counter(vocabulary.mentions(text))
        return (wanted & said).total() / wanted.total() if wanted else 1.0

    def _is_too_common(self, text: str) -> bool:
        said = " ".join(words(text))
        self.seen[said] += 1
        return self.seen[said] > self.settings.maximum_same


def foreign_share(text: str) -> float:
    """Share of the letters that are not Latin ones, 0..1."""
    letters = [letter for letter in text if letter.isalpha()]
    foreign = [letter for letter in letters if not unicodedata.name(letter, "").startswith("LATIN")]
    return len(foreign) / len(letters) if letters else 0.0
