"""Types of the storage package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One stored file.

    `size` is in bytes; `version_id` is set where the bucket keeps versions; `meta` is the writer's (dataset, split,
    rows and so on).
    """

    name: str
    uri: str
    size: int
    sha256: str
    version_id: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
