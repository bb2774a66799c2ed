"""What can only be judged with every record in sight: duplicates, contamination, caps. Reads light columns, never images."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings
from mgpt.curation.caption_duplicates import repeated_captions
from mgpt.curation.image_aliases import Names
from mgpt.curation.near_duplicates import Similar, find_matches, find_similar
from mgpt.curation.plan import Unit
from mgpt.curation.thumbnail_store import NONE, Fingerprints
from mgpt.storage import Store

TRAIN = "train"
_COLUMNS = ["id", "split", "task", "image_sha256", "names", "key", "source"]
Contamination = Counter[tuple[str, str, str]]  # training dataset, evaluation dataset and split, how it was found


@dataclass(frozen=True)
class Pair:
    """Two images found alike: thumbnails [32, 32, 3] of the one that stays and the one that goes."""

    kept: np.ndarray
    gone: np.ndarray
    distance: float
    reason: str


@dataclass(frozen=True)
class Verdicts:
    """By unit and row: why it goes ("" where it stays), the detail, its split and its source; how many pairs of images were found alike,
    some of them to show, and which evaluation sets training records were taken from."""

    reasons: list[np.ndarray]
    details: list[np.ndarray]
    splits: list[np.ndarray]
    sources: list[pa.ChunkedArray]
    similar: int
    pairs: list[Pair]
    contamination: Contamination


class _Rows:
    """The light columns of a unit's rows, the positions of their images, and what is decided about each row."""

    def __init__(self, unit: Unit, table: pa.Table, images: np.ndarray) -> None:
        self.unit, self.table, self.images = unit, table, images
        self.splits = np.array([sys.intern(split) for split in table.column("split").to_pylist()], dtype=object)
        self.reasons = np.full(len(table), "", dtype=object)
        self.details = np.full(len(table), "", dtype=object)

    def column(self, name: str) -> list[str]:
        """A column as Python values, made anew: kept for every unit they would be most of what is in memory."""
        values: list[str] = self.table.column(name).to_pylist()
        return values

    def drop(self, row: int, reason: str, detail: str) -> None:
        if not self.reasons[row]:
            self.reasons[row], self.details[row] = reason, detail

    def remaining(self, split: str) -> np.ndarray:
        """Which rows of a split are still in, [rows] bool."""
        return np.asarray((self.splits == split) & (self.reasons == ""), dtype=bool)

    def captions(self, store: Store, folder: str) -> list[str]:
        """The last turn's text of every row."""
        with store.open(f"{folder}/{self.unit.name}.rows.parquet") as file:
            turns = pq.read_table(file, columns=["turns"]).column("turns")
        return [row[-1]["text"] for row in turns.to_pylist()]


def link(store: Store, units: Sequence[Unit], settings: CurateSettings, folder: str) -> Verdicts:
    """Judges all rows of all units together. The first of several alike stays, in the order of the plan and of the file."""
    with Fingerprints(store, [f"{folder}/{unit.name}.images.parquet" for unit in units]) as images:
        rows = [_load(store, unit, folder, images) for unit in units]
        images.forget_digests()
        _drop_same_samples(rows)
        _drop_same_keys(rows)
        contaminated, contamination = (
            _drop_contaminated(rows, images) if settings.decontaminate else ([], Contamination())
        )
        repeated = _drop_duplicates(rows, images)
        shown = [
            *_shown(images, contaminated, "evaluation image"),
            *_shown(images, repeated, "near-duplicate image"),
        ]
    _drop_captions(rows, store, folder)
    _cap(rows)
    return Verdicts(
        [part.reasons for part in rows],
        [part.details for part in rows],
        [part.splits for part in rows],
        [part.table.column("source") for part in rows],
        len(contaminated) + len(repeated),
        shown,
        contamination,
    )


def _shown(images: Fingerprints, found: Sequence[Similar], reason: str, most: int = 8) -> list[Pair]:
    chosen = sorted(found, key=lambda pair: (-pair.distance, pair.second))[:most]
    return [Pair(images[pair.first], images[pair.second], pair.distance, reason) for pair in chosen]


def _load(store: Store, unit: Unit, folder: str, images: Fingerprints) -> _Rows:
    with store.open(f"{folder}/{unit.name}.rows.parquet") as file:
        table = pq.read_table(file, columns=_COLUMNS)
    return _Rows(unit, table.drop_columns("image_sha256"), images.positions(table.column("image_sha256").to_pylist()))


def _drop_same_samples(rows: Sequence[_Rows]) -> None:
    keys = [
        np.array([f"{fingerprint}/{split}" for fingerprint, split in _with_splits(part, "id")], dtype="S")
        for part in rows
    ]
    for part, row, first, first_row in _repeated(rows, keys):
        part.drop(row, "duplicate sample", f"the same as {first.table.column('source')[first_row].as_py()}")


def _drop_same_keys(rows: Sequence[_Rows]) -> None:
    """Predictions are told apart by the key, so of two questions of one evaluation split with the same key the second goes."""
    held_out = [part for part in rows if any(split != TRAIN for split in part.splits)]
    keys = []
    for part in held_out:
        parts = zip(part.column("task"), _with_splits(part, "key"), strict=True)
        keys.append(np.array([_key(part, task, key, split) for task, (key, split) in parts], dtype="S"))
    for part, row, first, first_row in _repeated(held_out, keys):
        if not part.reasons[row]:
            key = part.table.column("key")[row].as_py()
            part.drop(row, "duplicate id", f"key {key} is that of {first.table.column('source')[first_row].as_py()}")


def _key(part: _Rows, task: str, key: str, split: str) -> bytes:
    return f"{part.unit.dataset}/{split}/{task}/{key}".encode() if key and split != TRAIN else b""


def _with_splits(part: _Rows, column: str) -> Iterator[tuple[str, str]]:
    return zip(part.column(column), part.splits, strict=True)


def _repeated(rows: Sequence[_Rows], keys: Sequence[np.ndarray]) -> Iterator[tuple[_Rows, int, _Rows, int]]:
    """Every later row with the key (bytes by unit and row; empty is none) of an earlier one, and that one."""
    if not keys:
        return
    every = np.concatenate(keys)
    bounds = np.cumsum([0, *map(len, keys)])
    _, first, which = np.unique(every, return_index=True, return_inverse=True)
    for place in np.flatnonzero((first[which] < np.arange(len(every))) & (every != b"")):
        own, other = (int(np.searchsorted(bounds, at, "right")) - 1 for at in (place, first[which[place]]))
        yield rows[own], int(place - bounds[own]), rows[other], int(first[which[place]] - bounds[other])


def _drop_contaminated(rows: Sequence[_Rows], images: Fingerprints) -> tuple[list[Similar], Contamination]:
    """Training records whose image an evaluation split has: the same file, the same name in COCO or Visual Genome, or nearly the look."""
    names = Names((names, _label(part, split)) for part in rows for names, split in _with_splits(part, "names"))
    labels = _held_out(rows)
    training = np.unique(
        np.concatenate([part.images[part.splits == TRAIN] for part in rows] or [np.array([], np.int64)])
    )
    held_out = np.array(sorted(labels), dtype=np.int64)
    found = find_matches(images, np.setdiff1d(training[training != NONE], held_out), held_out)
    alike = {pair.second: pair.first for pair in found}
    contamination = Contamination()
    for part in rows:
        for row, (own, split) in enumerate(_with_splits(part, "names")):
            if split != TRAIN:
                continue
            image = int(part.images[row])
            if image in labels:
                label, way, detail = labels[image], "file", "its image is one of {}"
            elif own and (label := names.held_out(own)):
                way, detail = "name", f"its image, {' = '.join(own)}, is one of {{}}"
            elif image in alike:
                label, way, detail = (
                    labels[alike[image]],
                    "look",
                    f"its image nearly is one of {{}} ({images.digest(alike[image])})",
                )
            else:
                continue
            if not part.reasons[row]:
                contamination[part.unit.dataset, label, way] += 1
            part.drop(row, "evaluation image", detail.format(label))
    return found, contamination


def _label(part: _Rows, split: str) -> str:
    return "" if split == TRAIN else f"{part.unit.dataset}/{split}"


def _held_out(rows: Sequence[_Rows]) -> dict[int, str]:
    """Evaluation set by image; the first where several have it."""
    labels: dict[int, str] = {}
    for part in rows:
        for image, split in zip(part.images, part.splits, strict=True):
            if split != TRAIN and image != NONE:
                labels.setdefault(int(image), _label(part, split))
    return labels


def _drop_duplicates(rows: Sequence[_Rows], images: Fingerprints) -> list[Similar]:
    found: list[Similar] = []
    for group in _by_dataset(rows):
        rule = group[0].unit.settings.duplicates
        if rule == "samples":
            continue
        # Within a split only: an evaluation split stays as published.
        kept = np.unique(np.concatenate([part.images[part.remaining(TRAIN)] for part in group]))
        pairs = find_similar(images, kept[kept != NONE])
        alike = {pair.second: pair.first for pair in pairs}
        found += pairs
        seen: set[int] = set()
        for part in group:
            for row in map(int, np.flatnonzero(part.remaining(TRAIN) & (part.images != NONE))):
                image = int(part.images[row])
                if image in alike:
                    part.drop(
                        row,
                        "near-duplicate image",
                        f"its image nearly is an earlier one ({images.digest(alike[image])})",
                    )
                elif rule == "records" and image in seen:
                    part.drop(row, "duplicate image", "an earlier record has the same image")
                seen.add(image)
    return found


def _drop_captions(rows: Sequence[_Rows], store: Store, folder: str) -> None:
    for group in _by_dataset(rows):
        threshold = group[0].unit.settings.duplicate_captions
        if threshold is None:
            continue
        places = [(part, int(row)) for part in group for row in np.flatnonzero(part.remaining(TRAIN))]
        texts = {id(part): part.captions(store, folder) for part in group}
        for (part, row), earlier in zip(
            places, repeated_captions([texts[id(part)][row] for part, row in places], threshold), strict=True
        ):
            if earlier is not None:
                first, first_row = places[earlier]
                part.drop(
                    row, "duplicate caption", f"nearly the caption of {first.table.column('source')[first_row].as_py()}"
                )


def _cap(rows: Sequence[_Rows]) -> None:
    for group in _by_dataset(rows):
        cap = group[0].unit.settings.cap
        if cap is None:
            continue
        for split in sorted({split for part in group for split in part.splits}):
            fingerprints = [part.column("id") for part in group]
            rows_left = [map(int, np.flatnonzero(part.remaining(split))) for part in group]
            remaining = sorted((fingerprints[n][row], n, row) for n, left in enumerate(rows_left) for row in left)
            for _, n, row in remaining[cap:]:
                group[n].drop(row, "over the cap", f"{len(remaining)} remained, the cap is {cap}")


def _by_dataset(rows: Sequence[_Rows]) -> list[list[_Rows]]:
    groups: dict[str, list[_Rows]] = defaultdict(list)
    for part in rows:
        groups[part.unit.dataset].append(part)
    return list(groups.values())
