"""`mgpt data sources`: every dataset that can be read, what it is, under which licence and where it lies."""

from __future__ import annotations

from dataclasses import asdict

from mgpt.data.sources import READERS


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
    rows = [("NAME", "KIND", "TASKS", "SIZE", "LICENCE", "FORMAT")]
    rows += [
        (card.name, card.kind, ",".join(card.tasks), card.size, card.licence, " ".join(card.formats.split()))
        for card in (r.card for r in READERS.values())
    ]
    widths = [min(max(len(str(row[column])) for row in rows), 48) for column in range(5)]
    lines = ["  ".join([*(f"{str(value)[:width]:<{width}}" for value, width in zip(row, widths, strict=False)), row[5]]) for row in rows]
    return "\n".join([*lines, "", "Links, mirrors, citation and notes of one: mgpt data sources NAME"])


def _shown(value: object) -> str:
    return ("\n" + " " * 18).join(map(str, value)) if isinstance(value, tuple | list) else str(value)
