"""From downloaded sources to curated shards: nothing dropped in silence, the same bytes every time."""

from mgpt.data.curation.stage import Curation, curate

__all__ = ["Curation", "curate"]
