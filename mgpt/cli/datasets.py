"""`mgpt data sources`: every dataset that can be read, what it is, under which licence and where it lies."""

from __future__ import annotations

from dataclasses import asdict

from mgpt.data.datasets import READERS, Card
from mgpt.data.synthetic.formats import DATASETS

WIDEST = 37  # characters of a column


def sources_text(name: str | None = None) -> str:
    """A table of all readers, or everything about one.

    Raises:
        ValueError: there is no reader of that name.
    """
    if name is None:
        return _table()
    if name not in READERS:
        raise ValueError(f"reader {name!r} is not known; use one of {', '.join(sorted(READERS))}")
    facts = asdict(READERS[name].card)
    return "\n".join(f"{key:>16}  {_shown(value)}" for key, value in facts.items() if value)


def _table() -> str:
    rows = [("NAME", "KIND", "READER", "LICENCE", "LINKS", "FORMAT")]
    rows += [
        (c.name, c.kind, _tested(c.name), c.licence, _links(c), " ".join(c.formats.split()))
        for c in (r.card for r in READERS.values())
    ]
    widths = [min(max(len(row[column]) for row in rows), WIDEST) for column in range(5)]
    lines = [
        "  ".join([*(f"{_cut(value, width):<{width}}" for value, width in zip(row, widths, strict=False)), row[5]])
        for row in rows
    ]
    return "\n".join([*lines, "", "Size, links, mirrors, citation and notes of one: mgpt data sources NAME"])


def _tested(name: str) -> str:
    """Tests read the files that the shapes world writes in the format of each dataset, and those that the own-data page describes."""
    return "tested" if name in DATASETS or name == "jsonl" else "untested"


def _links(card: Card) -> str:
    official = "dead" if card.dead else f"{len(card.links)}" if card.links else "none"
    return f"{official} + {len(card.mirrors)} mirror{'s' * (len(card.mirrors) > 1)}" if card.mirrors else official


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _shown(value: object) -> str:
    return ("\n" + " " * 18).join(map(str, value)) if isinstance(value, tuple | list) else str(value)
