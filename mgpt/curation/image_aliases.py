"""Names of images across datasets: one COCO image is part of a dozen datasets, in as many encodings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class ImageAliases:
    """Maps names of images, such as `coco:139` and `vg:2315405`, to the evaluation set that holds the image.

    A record with two names for its image makes them aliases. Visual Genome's `image_data.json` maps its numbers to
    COCO's, so that a GQA question about `vg:2315405` and a RefCOCO reference to `coco:139` refer to one image.
    """

    def __init__(self, records: Iterable[tuple[Sequence[str], str]]) -> None:
        """Builds the groups of aliases (union-find) from (names, evaluation set or "" for training) of every record."""
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
        """Returns the evaluation set that holds the image; empty if there is none."""
        return next((label for name in names if (label := self._labels.get(self._root(name)))), "")

    def _root(self, name: str) -> str:
        while (parent := self._parents.get(name, name)) != name:
            name = parent
        return name

    def _join(self, one: str, other: str) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        if first != second:
            self._parents[second] = first
