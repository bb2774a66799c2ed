"""From downloaded sources to curated shards: nothing dropped in silence, the same bytes every time."""

from mgpt.curation.stage import Curation, curate

__all__ = ["Curation", "curate"]
