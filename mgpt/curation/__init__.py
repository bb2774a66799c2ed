"""Curation: from downloaded sources to clean shards. Every rejected record is accounted for, and equal input gives
equal bytes."""

from mgpt.curation.stage import Curation, curate

__all__ = ["Curation", "curate"]
