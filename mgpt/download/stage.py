"""Download of all sources into the store, and the manifest of the stored files."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.data.archives import BUNDLE
from mgpt.download.source import ItemStatus, SourceFetcher
from mgpt.download.url_dataset import fetch_url_lists
from mgpt.storage import Entry, Manifest, Store

Log = Callable[[str], None]


class DownloadError(ValueError):
    """A source is below its success floor. Fetched files are kept, and the next run requests only the others."""


@dataclass(frozen=True)
class Download:
    """The outcome of the stage.

    manifest: the stored files; it does not depend on interruptions. items: also failures and times. metrics: numbers
    of files, failures and bytes, success rate and seconds, by source.
    """

    manifest: Manifest
    items: list[ItemStatus]
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
    sources: Mapping[str, SourceSettings], settings: DownloadSettings, store: Store, log: Log = print
) -> Download:
    """Fetches every source into `store`, and logs a line for each.

    A stored item is fetched again only if its location reports a change. Failed items are tried again.

    Raises:
        DownloadError: a source is below its success floor; the message names its first failures.
        ValueError: a source has no reachable location.
    """
    items: list[ItemStatus] = []
    metrics = {}
    for name, source in sources.items():
        started = time.monotonic()
        statuses = SourceFetcher(name, source, settings, store).fetch(fetch_url_lists)
        items += statuses
        metrics[name] = _measure(statuses) | {"seconds": round(time.monotonic() - started, 3)}
        log(_summary_line(name, metrics[name]))
    _check_floors(sources, settings, items, metrics)
    entries = [_manifest_entry(item, sources[item.source]) for item in items if item.status == "ok"]
    return Download(Manifest(entries), items, metrics)


def _measure(items: list[ItemStatus]) -> dict[str, float]:
    files = sum(item.files for item in items)
    failed = sum(item.failed for item in items)
    return {
        "files": files,
        "failed": failed,
        "bytes": sum(item.size for item in items),
        "success_rate": (files - failed) / files if files else 0.0,
    }


def _summary_line(name: str, found: Mapping[str, float]) -> str:
    rate = f"{100 * found['success_rate']:.1f} %"
    fetched = f"{found['files'] - found['failed']} of {found['files']} files ({rate})"
    return f"download {name}: {fetched}, {found['bytes'] / 1e6:.1f} MB, {found['seconds']:.1f} s"


def _check_floors(
    sources: Mapping[str, SourceSettings],
    settings: DownloadSettings,
    items: list[ItemStatus],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    problems = []
    for name, source in sources.items():
        floor = settings.success_floor if source.success_floor is None else source.success_floor
        if metrics[name]["success_rate"] < floor:
            failures = [f"{item.name}: {item.reason}" for item in items if item.source == name and item.failed][:5]
            problems.append(
                f"sources.{name}: success {metrics[name]['success_rate']:.3f} is below its floor {floor}\n    "
                + "\n    ".join(failures)
            )
    if problems:
        fix = "run again to fetch only what failed, add a mirror to its locations, or lower success_floor"
        raise DownloadError("\n  ".join(["download is incomplete:", *problems, fix]))


def _manifest_entry(item: ItemStatus, source: SourceSettings) -> Entry:
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
