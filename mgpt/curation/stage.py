"""The curation stage: from downloaded files to Parquet shards of samples, a quarantine table, and the counts for a
report."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings, SourceSettings
from mgpt.curation.dataset_stats import DatasetStats, collect_stats
from mgpt.curation.dedup import deduplicate
from mgpt.curation.filter_records import filter_unit
from mgpt.curation.parallel_map import parallel_map, release_memory
from mgpt.curation.plan import Plan, make_plan
from mgpt.curation.quarantine import summarize, write_quarantine
from mgpt.curation.shards import ShardJob, shard_counts, write_shards
from mgpt.curation.types import DedupResult, ImagePair
from mgpt.data.shards import SUFFIX
from mgpt.storage import Entry, Manifest, Store

Log = Callable[[str], None]


class NoSamplesError(ValueError):
    """Every sample was rejected; `report` and `quarantine` hold the reasons."""

    def __init__(self, report: dict[str, Any], quarantine: Manifest) -> None:
        reasons = f"{report['records']} records; reasons: {report['reasons']}; see {quarantine.entries[0].uri}"
        super().__init__(f"curate: no sample is left of {reasons}")
        self.report, self.quarantine = report, quarantine


@dataclass(frozen=True)
class Curation:
    """The outcome of a curation.

    manifest: the shards. quarantine: the table of rejected records. report: counts by dataset and split, reject
    reasons, repairs. stats, pairs: what a data card shows besides, statistics of the shards and examples of
    near-duplicate images.
    """

    manifest: Manifest
    quarantine: Manifest
    report: dict[str, Any]
    stats: DatasetStats = field(default_factory=DatasetStats)
    pairs: list[ImagePair] = field(default_factory=list)

    def save(self, out: Path) -> None:
        """Writes `manifest.json`, `quarantine.json` and `metrics.json` (the report) below `out`."""
        out.mkdir(parents=True, exist_ok=True)
        self.manifest.save(out / "manifest.json")
        self.quarantine.save(out / "quarantine.json")
        (out / "metrics.json").write_text(json.dumps(self.report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def curate(
    manifest: Manifest,
    sources: Mapping[str, SourceSettings],
    settings: CurateSettings,
    store: Store,
    folder: str,
    log: Log = print,
) -> Curation:
    """Curates downloaded sources for training and evaluation.

    The same input gives the same bytes with any number of workers.

    Args:
        manifest: the files that were downloaded.
        folder: URI in the store for the shards and for work in progress, from which an interrupted call continues.
        log: receives a line for each finished file.

    Raises:
        ValueError: the settings name things that do not exist (all errors at once).
        NoSamplesError: every sample was rejected.
    """
    plan = make_plan(manifest, sources, settings, store)
    parts = f"{folder}/parts"
    counts = _filter(plan, settings, store, parts, log)
    release_memory()
    result = deduplicate(store, plan.units, settings, parts)
    dropped = sum(int((reasons != "").sum()) for reasons in result.reasons)
    log(f"curate: {dropped} rows rejected as duplicates, as contamination, or over a cap")
    entries = _write(plan, result, settings, store, folder)
    quarantine = write_quarantine(plan, result, store, parts, f"{folder}/quarantine.parquet")
    with store.open(quarantine.entries[0].uri) as file:
        rejected = pq.read_table(file, columns=["dataset", "split", "reason"])
    report = summarize(plan, counts, result, entries, rejected)
    if not entries:
        raise NoSamplesError(report, quarantine)
    stats = collect_stats(entries, settings.card_samples)
    store.delete(parts)
    return Curation(Manifest(entries), quarantine, report, stats, result.pairs)


def _filter(plan: Plan, settings: CurateSettings, store: Store, parts: str, log: Log) -> list[dict[str, Any]]:
    """Runs the first pass over every unit; returns their counts in the order of the plan."""
    counts: list[dict[str, Any]] = [{} for _ in plan.units]
    started = time.monotonic()
    work = partial(filter_unit, settings=settings, store=store, folder=parts)
    for number, (position, found) in enumerate(parallel_map(work, plan.units, settings.workers), 1):
        counts[position] = found
        unit = plan.units[position]
        progress = f"{number} of {len(plan.units)} files, {time.monotonic() - started:.0f} s"
        log(f"curate: {progress}: {unit.dataset} {unit.part.path}: {found['kept']} of {found['records']} kept")
    return counts


def _write(plan: Plan, result: DedupResult, settings: CurateSettings, store: Store, folder: str) -> list[Entry]:
    jobs = _shard_jobs(plan, result, settings, folder)
    written = dict(parallel_map(partial(write_shards, store), jobs, settings.workers))
    return [entry for position in sorted(written) for entry in written[position]]


def _shard_jobs(plan: Plan, result: DedupResult, settings: CurateSettings, folder: str) -> list[ShardJob]:
    """Returns a job for each unit and split with rows left; shards are numbered through a dataset's split."""
    jobs = []
    next_shard: Counter[tuple[str, str]] = Counter()
    for unit, reasons, splits in zip(plan.units, result.reasons, result.splits, strict=True):
        for split in sorted(set(splits)):
            keep = (reasons == "") & (splits == split)
            count = shard_counts(int(keep.sum()), settings.rows_per_shard)
            if not count:
                continue
            first = next_shard[unit.dataset, split]
            next_shard[unit.dataset, split] += count
            names = [f"{unit.dataset}/{split}/{first + n:05d}{SUFFIX}" for n in range(count)]
            meta = {"dataset": unit.dataset, "split": split}
            rows = f"{folder}/parts/{unit.name}.rows.parquet"
            jobs.append(ShardJob(rows, keep, names, f"{folder}/shards", settings.rows_per_shard, meta))
    return jobs
