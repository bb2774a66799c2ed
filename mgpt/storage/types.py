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


@dataclass(frozen=True)
class WeightsReference:
    """Trained weights by content: a registered version holds this in place of a copy of the files.

    `weights` (`content/<digest>`) and the locations of `backbones`, by name, are relative to the root of the store, so
    they stay valid when the store moves. A backbone outside the store is an absolute path or a URI
    (`package://mgpt/...` for those that ship with the package). `root` is the store's root at registration, for readers
    that know no other.
    """

    model_name: str
    digest: str
    weights: str
    backbones: dict[str, str]
    root: str = ""
