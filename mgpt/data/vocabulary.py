"""Which objects a text names: a vocabulary as data, found by longest match.

A vocabulary is a YAML file of `nouns` (name -> other words for it), optionally `attributes` (then an object is an attribute and a noun,
"red circle") and `ignore` (phrases that hold a noun's word and are no object). `shapes` and `coco` are shipped; a path names a user's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from mgpt.data.text_utils import words

SHIPPED = Path(__file__).parent / "vocabularies"
ATTRIBUTE_REACH = 2  # an attribute belongs to a noun at most this many words behind it ("red small circle")
KEYS = {"nouns", "attributes", "ignore"}


@dataclass(frozen=True)
class Vocabulary:
    """`nouns`, `attributes`: spoken form (tuple of words) -> name. `ignore`: spoken forms that are no object."""

    name: str
    nouns: dict[tuple[str, ...], str]
    attributes: dict[str, str]
    ignore: frozenset[tuple[str, ...]]

    def mentions(self, text: str) -> list[str]:
        """Names of the objects that a text names, in order, repeats kept. A noun without an attribute, in a vocabulary that has them, is
        named by the noun alone.
        """
        spoken = words(text)
        found, i = [], 0
        last_attribute: tuple[int, str] | None = None
        while i < len(spoken):
            length, name = self._noun_at(spoken, i)
            if name:
                near = last_attribute and i - last_attribute[0] <= ATTRIBUTE_REACH
                found.append(f"{last_attribute[1]} {name}" if near and last_attribute else name)
                last_attribute = None
            elif spoken[i] in self.attributes:
                last_attribute = (i, self.attributes[spoken[i]])
            i += length
        return found

    def _noun_at(self, spoken: list[str], start: int) -> tuple[int, str | None]:
        """The longest noun or ignored phrase that begins here: how many words it takes, and its name (None when it is no object)."""
        for length in range(min(self._longest, len(spoken) - start), 0, -1):
            phrase = tuple(spoken[start : start + length])
            for form in (phrase, (*phrase[:-1], _singular(phrase[-1]))):
                if form in self.ignore:
                    return length, None
                if form in self.nouns:
                    return length, self.nouns[form]
        return 1, None

    @cached_property
    def _longest(self) -> int:
        return max(len(form) for form in (*self.nouns, *self.ignore))

    def is_present(self, mention: str, truth: Iterable[str]) -> bool:
        """Whether a named object is in the image. A noun alone is there when any object of that noun is."""
        return any(mention == name or (name.endswith(f" {mention}") and bool(self.attributes)) for name in truth)


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("ches", "shes", "sses", "xes", "zes"):
        if word.endswith(ending):
            return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


@lru_cache(maxsize=8)
def load_vocabulary(name: str) -> Vocabulary:
    """A shipped vocabulary by name (`shapes`, `coco`) or a YAML file by path.

    Raises ValueError where the file is missing or has another form.
    """
    path = SHIPPED / f"{name}.yaml" if (SHIPPED / f"{name}.yaml").is_file() else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise ValueError(
            f"evaluate.vocabulary: there is no vocabulary '{name}'; use one of {shipped}, or the path of a YAML file with the key 'nouns'"
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content.get("nouns") or set(content) - KEYS:
        raise ValueError(
            f"evaluate.vocabulary: {path} must be a mapping with 'nouns' and, if wanted, 'attributes' and 'ignore'; see "
            f"mgpt/data/vocabularies/coco.yaml"
        )
    attributes = {form[0]: name for form, name in _phrase_forms(content.get("attributes") or {}).items()}
    ignore = frozenset(tuple(words(str(phrase))) for phrase in content.get("ignore") or [])
    return Vocabulary(name, _phrase_forms(content["nouns"]), attributes, ignore)


def _phrase_forms(table: dict[str, list[str] | None]) -> dict[tuple[str, ...], str]:
    return {tuple(words(str(form))): str(name) for name, others in table.items() for form in (name, *(others or []))}
