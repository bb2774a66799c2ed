"""Images by the names that the world knows them by: one image of COCO lies in a dozen datasets, in as many encodings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Names:
    """Which evaluation set holds an image, by names such as `coco:139` and `vg:2315405`.

    A record that gives its image two names says that they mean the same one: Visual Genome's `image_data.json` ties its numbers to
    COCO's, so that a question of GQA about `vg:2315405` and a reference of RefCOCO to `coco:139` meet.
    """

    def __init__(self, records: Iterable[tuple[Sequence[str], str]]) -> None:
        """`records` are (names, evaluation set or "" in training) of every record."""
        self._parents: dict[str, str] = {}
        held_out: dict[str, str] = {}
        for names, label in records:
            for other in names[1:]:
                self._join(names[0], other)
            if names and label:
                held_out.setdefault(names[0], label)
        self._labels: dict[str, str] = {}
        for name, label in held_out.items():
            self._labels.setdefault(self._root(name), label)

    def held_out(self, names: Sequence[str]) -> str:
        """The evaluation set that holds the image; empty where none does."""
        return next((label for name in names if (label := self._labels.get(self._root(name)))), "")

    def _root(self, name: str) -> str:
        while (parent := self._parents.get(name, name)) != name:
            name = parent
        return name

    def _join(self, one: str, other: str) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        if first != second:
            self._parents[second] = first
