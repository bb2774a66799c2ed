"""The accounts of a curation: a table of every rejected record with its reason, and counts that must add up."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.curation.filter_records import REJECTED
from mgpt.curation.plan import Plan
from mgpt.curation.types import DedupResult
from mgpt.storage import Entry, Manifest, Store


def write_quarantine(plan: Plan, result: DedupResult, store: Store, parts: str, uri: str) -> Manifest:
    """Writes one table of everything rejected: dataset, split, source reference, reason, detail, and the step that
    rejected it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "quarantine.parquet"
        with pq.ParquetWriter(path, REJECTED, compression="zstd") as writer:
            for table in _tables(plan, result, store, parts):
                writer.write_table(table)
        store.put_file(path, uri)
    return Manifest([store.entry("quarantine.parquet", uri)])


def _tables(plan: Plan, result: DedupResult, store: Store, parts: str) -> Iterator[pa.Table]:
    """Yields rejected archive members, then for each unit the rows that the first and the second pass rejected."""
    members = [
        {"dataset": f"({source})", "split": "", "source": member.member, "reason": member.reason, "detail": ""}
        for source, refused in plan.refused.items()
        for member in refused
    ]
    yield pa.Table.from_pylist([row | {"step": "unpack"} for row in members], schema=REJECTED)
    columns = (result.reasons, result.details, result.sources, result.splits)
    for unit, reasons, details, sources, splits in zip(plan.units, *columns, strict=True):
        yield pq.read_table(pa.BufferReader(store.read(f"{parts}/{unit.name}.rejected.parquet")))
        rejected = [
            {
                "dataset": unit.dataset,
                "split": splits[row],
                "source": sources[row].as_py(),
                "reason": reasons[row],
                "detail": details[row],
                "step": "dedup",
            }
            for row in range(len(reasons))
            if reasons[row]
        ]
        yield pa.Table.from_pylist(rejected, schema=REJECTED)


def summarize(
    plan: Plan, counts: Sequence[Mapping[str, Any]], result: DedupResult, entries: Sequence[Entry], rejected: pa.Table
) -> dict[str, Any]:
    """Returns the content of `metrics.json`: counts by dataset and split, by reject reason, and of repairs.

    Raises:
        AssertionError: the kept and the rejected records do not add up to the records read.
    """
    records = sum(unit["records"] for unit in counts) + sum(map(len, plan.refused.values()))
    kept = sum(entry.meta["rows"] for entry in entries)
    assert records == kept + rejected.num_rows, f"{records} records, but {kept} kept and {rejected.num_rows} rejected"
    repaired: Counter[str] = Counter()
    for unit in counts:
        repaired.update(unit["repaired"])
    return {
        "records": records,
        "kept": kept,
        "quarantined": rejected.num_rows,
        "datasets": _by_dataset(entries, rejected),
        "reasons": _most_common(Counter(rejected.column("reason").to_pylist())),
        "repaired": _most_common(repaired),
        "near_duplicate_pairs": result.near_duplicates,
        "contamination": [
            {"training": training, "evaluation": evaluation, "found_by": match, "records": count}
            for (training, evaluation, match), count in sorted(result.contamination.items())
        ],
    }


def _by_dataset(entries: Sequence[Entry], rejected: pa.Table) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(
        lambda: defaultdict(lambda: {"kept": 0, "quarantined": 0, "reasons": Counter()})
    )
    for entry in entries:
        found[entry.meta["dataset"]][entry.meta["split"]]["kept"] += entry.meta["rows"]
    columns = (rejected.column(name).to_pylist() for name in ("dataset", "split", "reason"))
    for dataset, split, reason in zip(*columns, strict=True):
        row = found[dataset][split or "-"]
        row["quarantined"] += 1
        row["reasons"][reason] += 1
    return {
        dataset: {split: row | {"reasons": _most_common(row["reasons"])} for split, row in sorted(splits.items())}
        for dataset, splits in sorted(found.items())
    }


def _most_common(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
