"""The books of a curation: what went and why, what stayed, and that the two add up."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.curation.dedup import Verdicts
from mgpt.curation.filter_records import LOST
from mgpt.curation.plan import Plan
from mgpt.storage import Entry, Manifest, Store


def write_quarantine(plan: Plan, verdicts: Verdicts, store: Store, parts: str, uri: str) -> Manifest:
    """Writes one table of everything that went: dataset, split, source reference, reason, detail, and the step that found it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "quarantine.parquet"
        with pq.ParquetWriter(path, LOST, compression="zstd") as writer:
            for table in _tables(plan, verdicts, store, parts):
                writer.write_table(table)
        store.put_file(path, uri)
    return Manifest([store.entry("quarantine.parquet", uri)])


def _tables(plan: Plan, verdicts: Verdicts, store: Store, parts: str) -> Iterator[pa.Table]:
    refused = [
        {
            "dataset": f"({source})",
            "split": "",
            "source": problem.member,
            "reason": problem.reason,
            "detail": "",
            "step": "unpack",
        }
        for source, problems in plan.refused.items()
        for problem in problems
    ]
    yield pa.Table.from_pylist(refused, schema=LOST)
    for unit, reasons, details, sources, splits in zip(
        plan.units, verdicts.reasons, verdicts.details, verdicts.sources, verdicts.splits, strict=True
    ):
        yield pq.read_table(pa.BufferReader(store.read(f"{parts}/{unit.name}.lost.parquet")))
        dropped = [
            {
                "dataset": unit.dataset,
                "split": splits[n],
                "source": sources[n].as_py(),
                "reason": reasons[n],
                "detail": details[n],
            }
            | {"step": "link"}
            for n in range(len(reasons))
            if reasons[n]
        ]
        yield pa.Table.from_pylist(dropped, schema=LOST)


def summarise(
    plan: Plan, counts: Sequence[Mapping[str, Any]], verdicts: Verdicts, entries: Sequence[Entry], lost: pa.Table
) -> dict[str, Any]:
    """Counts by dataset and split, by reason, and of repairs.

    Raises:
        AssertionError: what came in is not what stayed plus what went.
    """
    refused = sum(len(problems) for problems in plan.refused.values())
    records = sum(found["records"] for found in counts) + refused
    kept = sum(entry.meta["rows"] for entry in entries)
    assert records == kept + lost.num_rows, f"{records} records came in, {kept} stayed and {lost.num_rows} went"
    mended: Counter[str] = Counter()
    for found in counts:
        mended.update(found["mended"])
    return {
        "records": records,
        "kept": kept,
        "quarantined": lost.num_rows,
        "datasets": _by_dataset(entries, lost),
        "reasons": _ordered(Counter(lost.column("reason").to_pylist())),
        "mended": _ordered(mended),
        "similar_pairs": verdicts.similar,
        "contamination": [
            {"training": training, "evaluation": evaluation, "found_by": way, "records": count}
            for (training, evaluation, way), count in sorted(verdicts.contamination.items())
        ],
    }


def _by_dataset(entries: Sequence[Entry], lost: pa.Table) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(
        lambda: defaultdict(lambda: {"kept": 0, "quarantined": 0, "reasons": Counter()})
    )
    for entry in entries:
        found[entry.meta["dataset"]][entry.meta["split"]]["kept"] += entry.meta["rows"]
    for dataset, split, reason in zip(
        *(lost.column(name).to_pylist() for name in ("dataset", "split", "reason")), strict=True
    ):
        row = found[dataset][split or "-"]
        row["quarantined"] += 1
        row["reasons"][reason] += 1
    return {
        dataset: {split: row | {"reasons": _ordered(row["reasons"])} for split, row in sorted(splits.items())}
        for dataset, splits in sorted(found.items())
    }


def _ordered(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
