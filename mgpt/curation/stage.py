"""The curation stage: downloaded files in, Parquet shards of samples, a quarantine table and a report out."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings, SourceSettings
from mgpt.curation.dataset_stats import Marker, gather, plain_marks
from mgpt.curation.dedup import Verdicts, link
from mgpt.curation.filter_records import check_part
from mgpt.curation.parallel_map import each, give_back_memory
from mgpt.curation.plan import Plan, make_plan
from mgpt.curation.quarantine import summarise, write_quarantine
from mgpt.curation.shards import ShardJob, shard_counts, write_shards
from mgpt.reporting.data_card import card_html
from mgpt.storage import Entry, Manifest, Store

Report = Callable[[str], None]


class NothingLeft(ValueError):
    """Not one sample survived; `report` and `quarantine` say why."""

    def __init__(self, report: dict[str, Any], quarantine: Manifest) -> None:
        super().__init__(
            f"curate: no sample is left of {report['records']} records; reasons: {report['reasons']}; see {quarantine.entries[0].uri}"
        )
        self.report, self.quarantine = report, quarantine


@dataclass(frozen=True)
class Curation:
    """`manifest` names the shards, `quarantine` the table of what went; `report` holds counts by dataset and split, reasons, repairs."""

    manifest: Manifest
    quarantine: Manifest
    report: dict[str, Any]
    card: str

    def save(self, out: Path) -> None:
        """Writes `manifest.json`, `quarantine.json`, `metrics.json` and the data card `card.html` below `out`."""
        out.mkdir(parents=True, exist_ok=True)
        self.manifest.save(out / "manifest.json")
        self.quarantine.save(out / "quarantine.json")
        (out / "metrics.json").write_text(json.dumps(self.report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (out / "card.html").write_text(self.card, encoding="utf-8")


def curate(
    manifest: Manifest,
    sources: Mapping[str, SourceSettings],
    settings: CurateSettings,
    store: Store,
    folder: str,
    report: Report = print,
    mark: Marker = plain_marks,
) -> Curation:
    """Turns what was downloaded into what may be trained on and evaluated with.

    `folder` (a URI in the store) takes the shards, and the work in progress: an interrupted call goes on there. The same input gives the
    same bytes with any number of workers. `mark` tells the data card which part of a conversation the loss sees (`facts.token_marks`).

    Raises:
        ValueError: the settings name what is not there (all mistakes at once).
        NothingLeft: not one sample survived.
    """
    plan = make_plan(manifest, sources, settings, store)
    parts = f"{folder}/parts"
    counts = _check(plan, settings, store, parts, report)
    give_back_memory()
    verdicts = link(store, plan.units, settings, parts)
    report(
        f"curate: {sum(int((reasons != '').sum()) for reasons in verdicts.reasons)} rows lost to duplicates, contamination and caps"
    )
    entries = _write(plan, verdicts, settings, store, folder)
    quarantine = write_quarantine(plan, verdicts, store, parts, f"{folder}/quarantine.parquet")
    with store.open(quarantine.entries[0].uri) as file:
        lost = pq.read_table(file, columns=["dataset", "split", "reason"])
    summary = summarise(plan, counts, verdicts, entries, lost)
    if not entries:
        raise NothingLeft(summary, quarantine)
    card = card_html(summary, gather(store, entries, settings.card_samples), verdicts.pairs, mark)
    store.delete(parts)
    return Curation(Manifest(entries), quarantine, summary, card)


def _check(plan: Plan, settings: CurateSettings, store: Store, parts: str, report: Report) -> list[dict[str, Any]]:
    counts: list[dict[str, Any]] = [{} for _ in plan.units]
    started = time.monotonic()
    work = partial(check_part, settings=settings, store=store, folder=parts)
    for number, (position, found) in enumerate(each(work, plan.units, settings.workers), 1):
        counts[position] = found
        unit = plan.units[position]
        where = f"{unit.dataset} {unit.part.path}"
        progress = f"{number} of {len(plan.units)} files, {time.monotonic() - started:.0f} s"
        report(f"curate: {progress}: {where}: {found['kept']} of {found['records']}")
    return counts


def _write(plan: Plan, verdicts: Verdicts, settings: CurateSettings, store: Store, folder: str) -> list[Entry]:
    jobs = list(_shard_jobs(plan, verdicts, settings, folder))
    written = dict(each(partial(write_shards, store), jobs, settings.workers))
    return [entry for position in sorted(written) for entry in written[position]]


def _shard_jobs(plan: Plan, verdicts: Verdicts, settings: CurateSettings, folder: str) -> list[ShardJob]:
    jobs = []
    next_shard: Counter[tuple[str, str]] = Counter()
    for unit, reasons, splits in zip(plan.units, verdicts.reasons, verdicts.splits, strict=True):
        for split in sorted(set(splits)):
            keep = (reasons == "") & (splits == split)
            count = shard_counts(int(keep.sum()), settings.rows_per_shard)
            if not count:
                continue
            first = next_shard[unit.dataset, split]
            next_shard[unit.dataset, split] += count
            names = [f"{unit.dataset}/{split}/{first + n:05d}.parquet" for n in range(count)]
            meta = {"dataset": unit.dataset, "split": split}
            rows = f"{folder}/parts/{unit.name}.rows.parquet"
            jobs.append(ShardJob(rows, keep, names, f"{folder}/shards", settings.rows_per_shard, meta))
    return jobs
