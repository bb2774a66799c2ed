"""What a data card tells: counts, histograms and a few samples, gathered from curated shards in one pass."""

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

MOST_SHARDS = 400  # of a large set, evenly chosen shards speak for the rest
_LIGHT = [name for name in SCHEMA.names if name not in ("image", "extra")]

Marker = Callable[[list[dict[str, str]]], list[tuple[str, bool]]]


@dataclass
class Facts:
    """Numbers of a curated set. `looked_at` of `shards` shards were read for the histograms and samples; counts by dataset are exact."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    boxes: list[float] = field(default_factory=list)
    boxes_each: list[int] = field(default_factory=list)
    shards: int = 0
    looked_at: int = 0
    samples: list[Sample] = field(default_factory=list)


def gather(store: Store, entries: Sequence[Entry], wanted: int) -> Facts:
    """Reads the light columns of (at most 400) shards, and the images of `wanted` samples spread over datasets and tasks."""
    facts = Facts(shards=len(entries))
    for entry in entries:
        facts.counts[entry.meta["dataset"], entry.meta["split"]] += entry.meta["rows"]
    chosen = [
        entries[place]
        for place in np.unique(np.linspace(0, len(entries) - 1, min(len(entries), MOST_SHARDS)).astype(int))
    ]
    facts.looked_at = len(chosen)
    candidates: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for entry in chosen:
        with store.open(entry.uri) as file:
            rows = pq.read_table(file, columns=_LIGHT).to_pylist()
        for row in rows:
            _count(facts, row)
        if entry.meta["split"] == "train":
            for row in rows:
                candidates[row["dataset"], row["task"]].append((row["id"], entry.uri))
            candidates = defaultdict(list, {group: sorted(found)[:wanted] for group, found in candidates.items()})
    facts.samples = _read_samples(store, _spread(candidates, wanted))
    return facts


def _count(facts: Facts, row: dict[str, Any]) -> None:
    facts.tasks[row["task"]] += 1
    facts.licences[row["licence"] or "not stated"] += 1
    facts.lengths.append(sum(len(turn["text"].split()) for turn in row["turns"] if turn["role"] == "assistant"))
    facts.boxes_each.append(len(row["boxes"]))
    if row["width"]:
        facts.sides.append(min(row["width"], row["height"]))
        area = row["width"] * row["height"]
        facts.boxes += [max(0.0, (x2 - x1) * (y2 - y1)) / area for x1, y1, x2, y2 in row["boxes"]]


def _spread(candidates: dict[tuple[str, str], list[tuple[str, str]]], wanted: int) -> list[tuple[str, str]]:
    """In turn from every dataset and task, the smallest ids first: ids are hashes, so this is a fixed draw."""
    queues = [sorted(group) for _, group in sorted(candidates.items())]
    chosen: list[tuple[str, str]] = []
    for place in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if place < len(queue) and len(chosen) < wanted:
                chosen.append(queue[place])
    return chosen


def _read_samples(store: Store, chosen: Sequence[tuple[str, str]]) -> list[Sample]:
    found: dict[str, Sample] = {}
    for uri in sorted({uri for _, uri in chosen}):
        wanted = pa.array([fingerprint for fingerprint, place in chosen if place == uri])
        with store.open(uri) as opened:
            file = pq.ParquetFile(opened)
            for group in range(file.num_row_groups):  # one with an image wanted is read whole, of the others their ids
                mask = pa.compute.is_in(file.read_row_group(group, columns=["id"]).column("id"), wanted)
                if pa.compute.any(mask).as_py():
                    found |= {
                        row["id"]: Sample.from_row(row) for row in file.read_row_group(group).filter(mask).to_pylist()
                    }
    return [found[fingerprint] for fingerprint, _ in chosen]


def plain_marks(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    """The texts of a conversation and whether the loss sees them, without a model's template: answers are supervised."""
    return [(message["content"] + "\n", message["role"] == "assistant") for message in messages]


def token_marks(processor: Any, prompt_format: str) -> Marker:
    """A marker that shows the exact training text of a model: what the processor feeds it, token by token, with the supervised ones marked.

    `processor` is a `MiniGPTProcessor`, `prompt_format` a name of its formats.
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
    texts: list[str] = []
    start = 0
    for place in range(len(tokens) + 1):
        if place == len(tokens) or (tokens[place] == processor.image_token_id) != (
            tokens[start] == processor.image_token_id
        ):
            piece = tokens[start:place]
            is_image = piece[0] == processor.image_token_id
            texts.append(f"[{len(piece)} image tokens]" if is_image else processor.tokenizer.decode(piece))
            start = place
    return "".join(texts)
