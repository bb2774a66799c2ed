"""The second pass of curation, over all records at once: duplicates, contamination and caps. Reads light columns, never
images."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings
from mgpt.curation.caption_duplicates import find_duplicate_captions
from mgpt.curation.image_aliases import ImageAliases
from mgpt.curation.near_duplicates import NearDuplicate, find_matches, find_near_duplicates
from mgpt.curation.plan import Unit
from mgpt.curation.thumbnail_store import NO_IMAGE, ThumbnailStore
from mgpt.curation.types import Contamination, DedupResult, ImagePair
from mgpt.storage import Store

TRAIN = "train"
_COLUMNS = ["id", "split", "task", "image_sha256", "names", "key", "source"]
_MAX_PAIRS = 8  # pairs of each reason on the data card


class _UnitRows:
    """The light columns of a unit's rows, the positions of their images, and each row's reject reason."""

    def __init__(self, unit: Unit, table: pa.Table, images: np.ndarray) -> None:
        self.unit, self.table, self.images = unit, table, images
        self.splits = np.array([sys.intern(split) for split in table.column("split").to_pylist()], dtype=object)
        self.reasons = np.full(len(table), "", dtype=object)
        self.details = np.full(len(table), "", dtype=object)

    def column(self, name: str) -> list[str]:
        """Returns a column as Python values, converted on each call: kept for all units, they would fill most of the
        memory."""
        values: list[str] = self.table.column(name).to_pylist()
        return values

    def with_splits(self, name: str) -> Iterator[tuple[str, str]]:
        """Yields each row's value of a column, with its split."""
        return zip(self.column(name), self.splits, strict=True)

    def source(self, row: int) -> str:
        """Returns the reference of a row to its source file."""
        return str(self.table.column("source")[row].as_py())

    def drop(self, row: int, reason: str, detail: str) -> None:
        """Marks a row as rejected; the first reason stands."""
        if not self.reasons[row]:
            self.reasons[row], self.details[row] = reason, detail

    def remaining(self, split: str) -> np.ndarray:
        """Returns which rows of a split are not rejected, [rows] bool."""
        return np.asarray((self.splits == split) & (self.reasons == ""), dtype=bool)

    def captions(self, store: Store, folder: str) -> list[str]:
        """Returns the last turn's text of every row."""
        with store.open(f"{folder}/{self.unit.name}.rows.parquet") as file:
            turns = pq.read_table(file, columns=["turns"]).column("turns")
        return [row[-1]["text"] for row in turns.to_pylist()]


def deduplicate(store: Store, units: Sequence[Unit], settings: CurateSettings, folder: str) -> DedupResult:
    """Decides on all rows of all units together. Of several duplicates the first stays, in the order of the plan and
    the file."""
    with ThumbnailStore(store, [f"{folder}/{unit.name}.images.parquet" for unit in units]) as images:
        rows = [_load(store, unit, folder, images) for unit in units]
        images.forget_digests()
        _drop_same_samples(rows)
        _drop_same_keys(rows)
        contaminated, contamination = (
            _drop_contaminated(rows, images) if settings.decontaminate else ([], Contamination())
        )
        duplicates = _drop_duplicate_images(rows, images)
        pairs = [
            *_worst_pairs(images, contaminated, "evaluation image"),
            *_worst_pairs(images, duplicates, "near-duplicate image"),
        ]
    _drop_duplicate_captions(rows, store, folder)
    _apply_caps(rows)
    return DedupResult(
        [part.reasons for part in rows],
        [part.details for part in rows],
        [part.splits for part in rows],
        [part.table.column("source") for part in rows],
        len(contaminated) + len(duplicates),
        pairs,
        contamination,
    )


def _worst_pairs(images: ThumbnailStore, found: Sequence[NearDuplicate], reason: str) -> list[ImagePair]:
    chosen = sorted(found, key=lambda pair: (-pair.distance, pair.second))[:_MAX_PAIRS]
    return [ImagePair(images[pair.first], images[pair.second], pair.distance, reason) for pair in chosen]


def _load(store: Store, unit: Unit, folder: str, images: ThumbnailStore) -> _UnitRows:
    with store.open(f"{folder}/{unit.name}.rows.parquet") as file:
        table = pq.read_table(file, columns=_COLUMNS)
    positions = images.positions(table.column("image_sha256").to_pylist())
    return _UnitRows(unit, table.drop_columns("image_sha256"), positions)


def _drop_same_samples(rows: Sequence[_UnitRows]) -> None:
    keys = [
        np.array([f"{sample_id}/{split}" for sample_id, split in part.with_splits("id")], dtype="S") for part in rows
    ]
    for part, row, first, first_row in _repetitions(rows, keys):
        part.drop(row, "duplicate sample", f"the same as {first.source(first_row)}")


def _drop_same_keys(rows: Sequence[_UnitRows]) -> None:
    """Drops the second of two questions of an evaluation split with the same key: predictions are identified by it."""
    held_out = [part for part in rows if any(split != TRAIN for split in part.splits)]
    keys = []
    for part in held_out:
        values = zip(part.column("task"), part.with_splits("key"), strict=True)
        keys.append(np.array([_key(part, task, key, split) for task, (key, split) in values], dtype="S"))
    for part, row, first, first_row in _repetitions(held_out, keys):
        if not part.reasons[row]:
            key = part.table.column("key")[row].as_py()
            part.drop(row, "duplicate id", f"key {key} is that of {first.source(first_row)}")


def _key(part: _UnitRows, task: str, key: str, split: str) -> bytes:
    return f"{part.unit.dataset}/{split}/{task}/{key}".encode() if key and split != TRAIN else b""


def _repetitions(
    rows: Sequence[_UnitRows], keys: Sequence[np.ndarray]
) -> Iterator[tuple[_UnitRows, int, _UnitRows, int]]:
    """Yields (unit, row) of every row whose key occurred before, and (unit, row) of its first occurrence.

    `keys` are bytes by unit and row; an empty key matches none.
    """
    if not keys:
        return
    joined = np.concatenate(keys)
    bounds = np.cumsum([0, *map(len, keys)])
    _, first, inverse = np.unique(joined, return_index=True, return_inverse=True)
    for position in np.flatnonzero((first[inverse] < np.arange(len(joined))) & (joined != b"")):
        earlier = first[inverse[position]]
        unit, other = (int(np.searchsorted(bounds, at, "right")) - 1 for at in (position, earlier))
        yield rows[unit], int(position - bounds[unit]), rows[other], int(earlier - bounds[other])


def _drop_contaminated(rows: Sequence[_UnitRows], images: ThumbnailStore) -> tuple[list[NearDuplicate], Contamination]:
    """Drops training records whose image is in an evaluation split: as the same file, by name, or as a
    near-duplicate."""
    aliases = ImageAliases((names, _label(part, split)) for part in rows for names, split in part.with_splits("names"))
    labels = _held_out_images(rows)
    training = np.unique(
        np.concatenate([part.images[part.splits == TRAIN] for part in rows] or [np.array([], np.int64)])
    )
    held_out = np.array(sorted(labels), dtype=np.int64)
    found = find_matches(images, np.setdiff1d(training[training != NO_IMAGE], held_out), held_out)
    match_of = {pair.second: pair.first for pair in found}
    contamination: Contamination = Counter()
    for part in rows:
        for row, (names, split) in enumerate(part.with_splits("names")):
            if split != TRAIN:
                continue
            image = int(part.images[row])
            if image in labels:
                label, kind, detail = labels[image], "file", f"its image is one of {labels[image]}"
            elif names and (label := aliases.held_out(names)):
                kind, detail = "name", f"its image, {' = '.join(names)}, is one of {label}"
            elif image in match_of:
                label, kind = labels[match_of[image]], "near-duplicate"
                detail = f"its image nearly equals one of {label} ({images.digest(match_of[image])})"
            else:
                continue
            if not part.reasons[row]:
                contamination[part.unit.dataset, label, kind] += 1
            part.drop(row, "evaluation image", detail)
    return found, contamination


def _label(part: _UnitRows, split: str) -> str:
    return "" if split == TRAIN else f"{part.unit.dataset}/{split}"


def _held_out_images(rows: Sequence[_UnitRows]) -> dict[int, str]:
    """Returns the evaluation set of each held-out image, the first of several."""
    labels: dict[int, str] = {}
    for part in rows:
        for image, split in zip(part.images, part.splits, strict=True):
            if split != TRAIN and image != NO_IMAGE:
                labels.setdefault(int(image), _label(part, split))
    return labels


def _drop_duplicate_images(rows: Sequence[_UnitRows], images: ThumbnailStore) -> list[NearDuplicate]:
    """Drops duplicates within each dataset's training split, by its rule; evaluation splits stay as published."""
    found: list[NearDuplicate] = []
    for group in _by_dataset(rows):
        rule = group[0].unit.settings.duplicates
        if rule == "samples":
            continue
        kept = np.unique(np.concatenate([part.images[part.remaining(TRAIN)] for part in group]))
        pairs = find_near_duplicates(images, kept[kept != NO_IMAGE])
        found += pairs
        original_of = {pair.second: pair.first for pair in pairs}
        seen: set[int] = set()
        for part in group:
            for row in map(int, np.flatnonzero(part.remaining(TRAIN) & (part.images != NO_IMAGE))):
                image = int(part.images[row])
                if image in original_of:
                    detail = f"its image nearly equals an earlier one ({images.digest(original_of[image])})"
                    part.drop(row, "near-duplicate image", detail)
                elif rule == "records" and image in seen:
                    part.drop(row, "duplicate image", "an earlier record has the same image")
                seen.add(image)
    return found


def _drop_duplicate_captions(rows: Sequence[_UnitRows], store: Store, folder: str) -> None:
    for group in _by_dataset(rows):
        threshold = group[0].unit.settings.duplicate_captions
        if threshold is None:
            continue
        positions = [(part, int(row)) for part in group for row in np.flatnonzero(part.remaining(TRAIN))]
        texts = {id(part): part.captions(store, folder) for part in group}
        duplicate_of = find_duplicate_captions([texts[id(part)][row] for part, row in positions], threshold)
        for (part, row), earlier in zip(positions, duplicate_of, strict=True):
            if earlier is not None:
                first, first_row = positions[earlier]
                part.drop(row, "duplicate caption", f"nearly the caption of {first.source(first_row)}")


def _apply_caps(rows: Sequence[_UnitRows]) -> None:
    """Keeps at most `cap` rows of each dataset and split: those with the smallest content hashes."""
    for group in _by_dataset(rows):
        cap = group[0].unit.settings.cap
        if cap is None:
            continue
        for split in sorted({split for part in group for split in part.splits}):
            ids = [part.column("id") for part in group]
            rows_left = [map(int, np.flatnonzero(part.remaining(split))) for part in group]
            remaining = sorted((ids[n][row], n, row) for n, left in enumerate(rows_left) for row in left)
            for _, n, row in remaining[cap:]:
                group[n].drop(row, "over the cap", f"{len(remaining)} remained, the cap is {cap}")


def _by_dataset(rows: Sequence[_UnitRows]) -> list[list[_UnitRows]]:
    groups: dict[str, list[_UnitRows]] = defaultdict(list)
    for part in rows:
        groups[part.unit.dataset].append(part)
    return list(groups.values())
