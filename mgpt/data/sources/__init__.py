"""A reader for each dataset's published format, by name in `READERS`."""

from mgpt.data.sources.base import Card, Part, Problem, Reader

READERS: dict[str, Reader] = {}

__all__ = ["READERS", "Card", "Part", "Problem", "Reader"]
