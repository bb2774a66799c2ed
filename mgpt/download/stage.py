"""The download stage: sources in, a manifest of stored files out."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.data.archives import BUNDLE
from mgpt.download.source import SourceFetch, Status
from mgpt.download.url_dataset import fetch_url_lists
from mgpt.storage import Entry, Manifest, Store

Report = Callable[[str], None]


class DownloadError(ValueError):
    """A source stayed below its success floor; what arrived is kept, and the next run asks only for the rest."""


@dataclass(frozen=True)
class Download:
    """`manifest` names the stored files, the same after any interruption; `items` also holds times and failures;
    `metrics` by source.
    """

    manifest: Manifest
    items: list[Status]
    metrics: dict[str, dict[str, float]]

    def save(self, out: Path) -> None:
        """Writes `manifest.json`, `items.jsonl` (a line per item) and `metrics.json` below `out`."""
        out.mkdir(parents=True, exist_ok=True)
        self.manifest.save(out / "manifest.json")
        (out / "items.jsonl").write_text(
            "".join(json.dumps(asdict(item), sort_keys=True) + "\n" for item in self.items), encoding="utf-8"
        )
        (out / "metrics.json").write_text(json.dumps(self.metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def download(
    sources: Mapping[str, SourceSettings], settings: DownloadSettings, store: Store, report: Report = print
) -> Download:
    """Brings every source into `store` and says what arrived.

    An item that is already there is not asked for again unless its location says that it changed; failed ones are
    tried again.

    Raises:
        DownloadError: a source is below its success floor; names the first failures of each.
        ValueError: a source has no reachable location.
    """
    items: list[Status] = []
    metrics = {}
    for name, source in sources.items():
        started = time.monotonic()
        found = SourceFetch(name, source, settings, store).fetch(fetch_url_lists)
        items += found
        metrics[name] = _measure(found) | {"seconds": round(time.monotonic() - started, 3)}
        report(_line(name, metrics[name]))
    _check_floors(sources, settings, items, metrics)
    entries = [_entry(item, sources[item.source]) for item in items if item.status == "ok"]
    return Download(Manifest(entries), items, metrics)


def _measure(items: list[Status]) -> dict[str, float]:
    files = sum(item.files for item in items)
    failed = sum(item.failed for item in items)
    return {
        "files": files,
        "failed": failed,
        "bytes": sum(item.size for item in items),
        "success_rate": (files - failed) / files if files else 0.0,
    }


def _line(name: str, found: Mapping[str, float]) -> str:
    share = f"{100 * found['success_rate']:.1f} %"
    arrived = f"{found['files'] - found['failed']} of {found['files']} files ({share})"
    return f"download {name}: {arrived}, {found['bytes'] / 1e6:.1f} MB, {found['seconds']:.1f} s"


def _check_floors(
    sources: Mapping[str, SourceSettings],
    settings: DownloadSettings,
    items: list[Status],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    broken = []
    for name, source in sources.items():
        floor = settings.success_floor if source.success_floor is None else source.success_floor
        if metrics[name]["success_rate"] < floor:
            failures = [f"{item.name}: {item.reason}" for item in items if item.source == name and item.failed][:5]
            broken.append(
                f"sources.{name}: success {metrics[name]['success_rate']:.3f} is below its floor {floor}\n    "
                + "\n    ".join(failures)
            )
    if broken:
        fix = "run again to fetch only what failed, add a mirror to its locations, or lower success_floor"
        raise DownloadError("\n  ".join(["download is incomplete:", *broken, fix]))


def _entry(item: Status, source: SourceSettings) -> Entry:
    unpack = item.name.endswith(BUNDLE) or any(
        fnmatch.fnmatchcase(item.name.lower(), pattern) for pattern in source.unpack
    )
    meta = {
        "source": item.source,
        "kind": source.kind,
        "licence": item.licence,
        "status": item.status,
        "files": item.files,
        "unpack": unpack,
    }
    return Entry(f"{item.source}/{item.name}", item.uri, item.size, item.sha256, item.version_id, meta)
