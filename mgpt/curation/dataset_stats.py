"""Statistics for the data card: counts, histograms and a few samples, collected from curated shards in one pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mgpt.data.shards import RowReader, scan
from mgpt.data.types import METADATA, Sample
from mgpt.storage import Entry

MAX_SHARDS = 400  # of a larger set, evenly spaced shards are read
_LIGHT_COLUMNS = [name for name in METADATA if name != "extra"]

# From a conversation to pieces of text, each with whether the loss covers it.
_Candidate = tuple[str, str, int]  # id, URI of its shard, row in it
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


def collect_stats(entries: Sequence[Entry], samples: int) -> DatasetStats:
    """Reads the light columns of at most 400 shards, and `samples` whole samples spread over datasets and tasks."""
    stats = DatasetStats(shards=len(entries))
    for entry in entries:
        stats.counts[entry.meta["dataset"], entry.meta["split"]] += entry.meta["rows"]
    positions = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), MAX_SHARDS)).astype(int))
    stats.shards_read = len(positions)
    candidates: dict[tuple[str, str], list[_Candidate]] = defaultdict(list)  # by dataset and task
    for entry in (entries[position] for position in positions):
        rows = [row for batch in scan(entry.uri, _LIGHT_COLUMNS) for row in batch.to_pylist()]
        for row in rows:
            _count(stats, row)
        if entry.meta["split"] == "train":
            for number, row in enumerate(rows):
                candidates[row["dataset"], row["task"]].append((row["id"], entry.uri, number))
            candidates = defaultdict(list, {group: sorted(found)[:samples] for group, found in candidates.items()})
    chosen = RowReader().rows([(uri, number) for _, uri, number in _choose(candidates, samples)])
    stats.samples = [Sample.from_row(row) for row in chosen]
    return stats


def _count(stats: DatasetStats, row: dict[str, Any]) -> None:
    stats.tasks[row["task"]] += 1
    stats.licences[row["licence"] or "not stated"] += 1
    stats.lengths.append(sum(len(turn["text"].split()) for turn in row["turns"] if turn["role"] == "assistant"))
    stats.boxes_each.append(len(row["boxes"]))
    stats.sides += [min(image["width"], image["height"]) for image in row["images"]]
    for (x1, y1, x2, y2), at in zip(row["boxes"], row["box_images"] or [0] * len(row["boxes"]), strict=True):
        area = row["images"][at]["width"] * row["images"][at]["height"]
        stats.boxes.append(max(0.0, (x2 - x1) * (y2 - y1)) / area)


def _choose(candidates: dict[tuple[str, str], list[_Candidate]], count: int) -> list[_Candidate]:
    """Draws from every dataset and task in turn, smallest ids first; ids are hashes, so the draw is fixed but
    unbiased."""
    queues = [sorted(group) for _, group in sorted(candidates.items())]
    chosen: list[_Candidate] = []
    for position in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if position < len(queue) and len(chosen) < count:
                chosen.append(queue[position])
    return chosen


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
