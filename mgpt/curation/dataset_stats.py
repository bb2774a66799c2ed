"""Statistics for the data card: counts, histograms and a few samples, collected from curated shards in one pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.data.types import SCHEMA, Sample
from mgpt.storage import Entry, Store

MAX_SHARDS = 400  # of a larger set, evenly spaced shards are read
_LIGHT_COLUMNS = [name for name in SCHEMA.names if name not in ("image", "extra")]

# From a conversation to pieces of text, each with whether the loss covers it.
Marker = Callable[[list[dict[str, str]]], list[tuple[str, bool]]]


@dataclass
class DatasetStats:
    """Statistics of a curated set. `counts` (dataset, split → rows) are exact; the others come from `shards_read` of
    `shards` shards.

    `lengths`: words of each sample's answers. `sides`: shorter side of each image in pixels. `boxes`: share of the
    image that each box covers. `boxes_each`: boxes per sample.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    boxes: list[float] = field(default_factory=list)
    boxes_each: list[int] = field(default_factory=list)
    shards: int = 0
    shards_read: int = 0
    samples: list[Sample] = field(default_factory=list)


def collect_stats(store: Store, entries: Sequence[Entry], samples: int) -> DatasetStats:
    """Reads the light columns of at most 400 shards, and `samples` whole samples spread over datasets and tasks."""
    stats = DatasetStats(shards=len(entries))
    for entry in entries:
        stats.counts[entry.meta["dataset"], entry.meta["split"]] += entry.meta["rows"]
    positions = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), MAX_SHARDS)).astype(int))
    stats.shards_read = len(positions)
    candidates: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)  # (id, shard) by dataset and task
    for entry in (entries[position] for position in positions):
        with store.open(entry.uri) as file:
            rows = pq.read_table(file, columns=_LIGHT_COLUMNS).to_pylist()
        for row in rows:
            _count(stats, row)
        if entry.meta["split"] == "train":
            for row in rows:
                candidates[row["dataset"], row["task"]].append((row["id"], entry.uri))
            candidates = defaultdict(list, {group: sorted(found)[:samples] for group, found in candidates.items()})
    stats.samples = _read_samples(store, _choose(candidates, samples))
    return stats


def _count(stats: DatasetStats, row: dict[str, Any]) -> None:
    stats.tasks[row["task"]] += 1
    stats.licences[row["licence"] or "not stated"] += 1
    stats.lengths.append(sum(len(turn["text"].split()) for turn in row["turns"] if turn["role"] == "assistant"))
    stats.boxes_each.append(len(row["boxes"]))
    if row["width"]:
        stats.sides.append(min(row["width"], row["height"]))
        area = row["width"] * row["height"]
        stats.boxes += [max(0.0, (x2 - x1) * (y2 - y1)) / area for x1, y1, x2, y2 in row["boxes"]]


def _choose(candidates: dict[tuple[str, str], list[tuple[str, str]]], count: int) -> list[tuple[str, str]]:
    """Draws from every dataset and task in turn, smallest ids first; ids are hashes, so the draw is fixed but
    unbiased."""
    queues = [sorted(group) for _, group in sorted(candidates.items())]
    chosen: list[tuple[str, str]] = []
    for position in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if position < len(queue) and len(chosen) < count:
                chosen.append(queue[position])
    return chosen


def _read_samples(store: Store, chosen: Sequence[tuple[str, str]]) -> list[Sample]:
    found: dict[str, Sample] = {}
    for uri in sorted({uri for _, uri in chosen}):
        ids = pa.array([sample_id for sample_id, shard in chosen if shard == uri])
        with store.open(uri) as opened:
            file = pq.ParquetFile(opened)
            for group in range(file.num_row_groups):  # only groups with a chosen sample are read whole
                mask = pa.compute.is_in(file.read_row_group(group, columns=["id"]).column("id"), ids)
                if pa.compute.any(mask).as_py():
                    rows = file.read_row_group(group).filter(mask).to_pylist()
                    found |= {row["id"]: Sample.from_row(row) for row in rows}
    return [found[sample_id] for sample_id, _ in chosen]


def plain_marks(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    """Marks the texts of a conversation without a model's template: answers are supervised."""
    return [(message["content"] + "\n", message["role"] == "assistant") for message in messages]


def token_marks(processor: Any, prompt_format: str) -> Marker:
    """Returns a marker that shows a model's exact training text: the tokens of the processor, with supervised ones
    marked.

    Args:
        processor: a `MiniGPTProcessor`.
        prompt_format: name of one of its prompt formats.
    """

    def mark(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
        batch = processor(conversations=[messages], format=prompt_format, labels=True)
        runs: list[tuple[list[int], bool]] = []
        for token, label in zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), strict=True):
            if not runs or runs[-1][1] != (label != -100):
                runs.append(([], label != -100))
            runs[-1][0].append(token)
        return [(_decode(processor, tokens), supervised) for tokens, supervised in runs]

    return mark


def _decode(processor: Any, tokens: list[int]) -> str:
    """Decodes text tokens, and abbreviates runs of image tokens to their number."""
    image = processor.image_token_id
    texts: list[str] = []
    start = 0
    for end in range(len(tokens) + 1):
        if end == len(tokens) or (tokens[end] == image) != (tokens[start] == image):
            run = tokens[start:end]
            texts.append(f"[{len(run)} image tokens]" if run[0] == image else processor.tokenizer.decode(run))
            start = end
    return "".join(texts)
