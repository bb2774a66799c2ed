"""Object vocabularies: the objects that a text names, found by longest match.

A vocabulary is a YAML file of `nouns` (name -> synonyms), optionally `attributes` (an object is then an attribute and a
noun, "red circle") and `ignore` (phrases that contain a noun but name no object). `shapes` and `coco` are shipped; any
other is given by its path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from mgpt.data.text_utils import words

SHIPPED = Path(__file__).parent / "vocabularies"
ATTRIBUTE_REACH = 2  # maximum distance in words from an attribute to its noun ("red small circle")
KEYS = {"nouns", "attributes", "ignore"}


@dataclass(frozen=True)
class Vocabulary:
    """An object vocabulary.

    Attributes:
        name: as given to `load_vocabulary`.
        nouns: phrase (tuple of words) -> object name.
        attributes: word -> attribute name.
        ignore: phrases that name no object.
    """

    name: str
    nouns: dict[tuple[str, ...], str]
    attributes: dict[str, str]
    ignore: frozenset[tuple[str, ...]]

    def mentions(self, text: str) -> list[str]:
        """Returns the names of the objects in a text, in order, repeats included.

        A noun without an attribute is returned as the noun alone.
        """
        tokens = words(text)
        found, i = [], 0
        attribute: tuple[int, str] | None = None  # position and name of the last one
        while i < len(tokens):
            length, name = self._noun_at(tokens, i)
            if name:
                found.append(f"{attribute[1]} {name}" if attribute and i - attribute[0] <= ATTRIBUTE_REACH else name)
                attribute = None
            elif tokens[i] in self.attributes:
                attribute = (i, self.attributes[tokens[i]])
            i += length
        return found

    def _noun_at(self, tokens: list[str], start: int) -> tuple[int, str | None]:
        """Returns the word count and name (None if ignored) of the longest phrase at `start`; (1, None) if there is
        none.
        """
        for length in range(min(self._longest, len(tokens) - start), 0, -1):
            phrase = tuple(tokens[start : start + length])
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
        """Returns true if a mention is among the objects `truth`. A noun alone matches any attribute."""
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
    """Loads a shipped vocabulary by name (`shapes`, `coco`), or a YAML file by path.

    Raises:
        ValueError: the file is missing or has another form.
    """
    path = SHIPPED / f"{name}.yaml" if (SHIPPED / f"{name}.yaml").is_file() else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise ValueError(
            f"evaluate.vocabulary: no vocabulary {name!r}; use one of {shipped}, or the path of a YAML file"
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content.get("nouns") or set(content) - KEYS:
        raise ValueError(
            f"evaluate.vocabulary: {path} must be a mapping with 'nouns' and, optionally, 'attributes' and 'ignore'; "
            "see mgpt/data/vocabularies/coco.yaml"
        )
    attributes = {form[0]: name for form, name in _phrase_forms(content.get("attributes") or {}).items()}
    ignore = frozenset(tuple(words(str(phrase))) for phrase in content.get("ignore") or [])
    return Vocabulary(name, _phrase_forms(content["nouns"]), attributes, ignore)


def _phrase_forms(table: dict[str, list[str] | None]) -> dict[tuple[str, ...], str]:
    return {tuple(words(str(form))): str(name) for name, others in table.items() for form in (name, *(others or []))}
