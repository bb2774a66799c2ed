"""What can only be judged with every record in sight: duplicates, contamination, caps. Reads light columns, never pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.data.curation.captions import repeated_captions
from mgpt.data.curation.images import THUMBNAIL
from mgpt.data.curation.plan import Unit
from mgpt.data.curation.similar import Similar, find_matches, find_similar
from mgpt.settings.sources import CurateSettings
from mgpt.storage import Store

TRAIN = "train"
_COLUMNS = ["id", "split", "task", "image_sha256", "source"]


@dataclass(frozen=True)
class Pair:
    """Two pictures found alike: thumbnails [32, 32, 3] of the one that stays and the one that goes."""

    kept: np.ndarray
    gone: np.ndarray
    distance: float
    reason: str


@dataclass(frozen=True)
class Verdicts:
    """By unit and row: why it goes ("" where it stays), the detail, its split and its source; how many pairs of pictures were found alike,
    and some of them to show."""

    reasons: list[np.ndarray]
    details: list[np.ndarray]
    splits: list[np.ndarray]
    sources: list[list[str]]
    similar: int
    pairs: list[Pair]


class _Rows:
    """The light columns of a unit's rows, and what is decided about each."""

    def __init__(self, unit: Unit, table: pa.Table) -> None:
        self.unit, self.table = unit, table
        self._columns = {name: table.column(name).to_pylist() for name in _COLUMNS}
        self.reasons = np.full(len(table), "", dtype=object)
        self.details = np.full(len(table), "", dtype=object)

    def column(self, name: str) -> list[str]:
        return self._columns[name]

    def drop(self, row: int, reason: str, detail: str) -> None:
        if not self.reasons[row]:
            self.reasons[row], self.details[row] = reason, detail

    def pictures(self) -> Iterator[tuple[str, str]]:
        """Digest of the picture ("" for text only) and split of every row."""
        return ((digest or "", split) for digest, split in zip(self.column("image_sha256"), self.column("split"), strict=True))

    def remaining(self, split: str) -> Iterator[str]:
        """Digests of the pictures of a split's rows that are still in."""
        return (digest for row, (digest, own) in enumerate(self.pictures()) if digest and own == split and not self.reasons[row])

    def remaining_rows(self, split: str) -> Iterator[tuple[int, str]]:
        """Row and id of a split's rows that are still in."""
        pairs = zip(self.column("id"), self.column("split"), strict=True)
        return ((row, identity) for row, (identity, own) in enumerate(pairs) if own == split and not self.reasons[row])

    def captions(self, store: Store, folder: str) -> list[str]:
        """The last turn's text of every row."""
        with store.open(f"{folder}/{self.unit.name}.rows.parquet") as file:
            turns = pq.read_table(file, columns=["turns"]).column("turns")
        return [row[-1]["text"] for row in turns.to_pylist()]


class Pictures:
    """The fingerprints of every distinct picture: `sha256` names, `thumbnails` [pictures, 32, 32, 3] uint8."""

    def __init__(self, store: Store, units: Sequence[Unit], folder: str) -> None:
        tables = [pq.read_table(pa.BufferReader(store.read(f"{folder}/{unit.name}.images.parquet"))) for unit in units]
        self.index: dict[str, int] = {}
        thumbnails = []
        for table in tables:
            for digest, thumbnail in zip(table.column("sha256").to_pylist(), table.column("thumbnail").to_pylist(), strict=True):
                if digest not in self.index:
                    self.index[digest] = len(self.index)
                    thumbnails.append(np.frombuffer(thumbnail, dtype=np.uint8))
        self.sha256 = list(self.index)
        shape = (len(thumbnails), THUMBNAIL, THUMBNAIL, 3)
        self.thumbnails = np.stack(thumbnails).reshape(shape) if thumbnails else np.zeros(shape, np.uint8)

    def rows(self, digests: Iterable[str]) -> np.ndarray:
        """Positions [n] of pictures, in order of first sight."""
        return np.array(sorted(self.index[digest] for digest in digests if digest), dtype=np.int64)


def link(store: Store, units: Sequence[Unit], settings: CurateSettings, folder: str) -> Verdicts:
    """Judges all rows of all units together. The first of several alike stays, in the order of the plan and of the file."""
    rows = [_load(store, unit, folder) for unit in units]
    pictures = Pictures(store, units, folder)
    _drop_same_samples(rows)
    contaminated = _drop_contaminated(rows, pictures) if settings.decontaminate else []
    repeated = _drop_duplicates(rows, pictures)
    _drop_captions(rows, store, folder)
    _cap(rows)
    return Verdicts(
        [part.reasons for part in rows],
        [part.details for part in rows],
        [np.array(part.column("split"), dtype=object) for part in rows],
        [part.column("source") for part in rows],
        len(contaminated) + len(repeated),
        [*_shown(pictures, contaminated, "evaluation image"), *_shown(pictures, repeated, "near-duplicate image")],
    )


def _shown(pictures: Pictures, found: Sequence[Similar], reason: str, most: int = 8) -> list[Pair]:
    chosen = sorted(found, key=lambda pair: (-pair.distance, pair.second))[:most]
    return [Pair(pictures.thumbnails[pair.first], pictures.thumbnails[pair.second], pair.distance, reason) for pair in chosen]


def _load(store: Store, unit: Unit, folder: str) -> _Rows:
    with store.open(f"{folder}/{unit.name}.rows.parquet") as file:
        table = pq.read_table(file, columns=_COLUMNS)
    return _Rows(unit, table)


def _drop_same_samples(rows: Sequence[_Rows]) -> None:
    first: dict[tuple[str, str], str] = {}
    for part in rows:
        for row, (identity, split, source) in enumerate(zip(part.column("id"), part.column("split"), part.column("source"), strict=True)):
            if (identity, split) in first:
                part.drop(row, "duplicate sample", f"the same as {first[identity, split]}")
            else:
                first[identity, split] = source


def _drop_contaminated(rows: Sequence[_Rows], pictures: Pictures) -> list[Similar]:
    held_out = {digest for part in rows for digest, split in part.pictures() if split != TRAIN}
    training = {digest for part in rows for digest, split in part.pictures() if split == TRAIN}
    found = find_matches(pictures.thumbnails, pictures.rows(training - held_out), pictures.rows(held_out))
    alike = {pictures.sha256[pair.second]: pictures.sha256[pair.first] for pair in found}
    for part in rows:
        for row, (digest, split) in enumerate(part.pictures()):
            if split == TRAIN and digest in held_out:
                part.drop(row, "evaluation image", "its picture is one of an evaluation split")
            elif split == TRAIN and digest in alike:
                part.drop(row, "evaluation image", f"its picture nearly is an evaluation split's ({alike[digest][:16]})")
    return found


def _drop_duplicates(rows: Sequence[_Rows], pictures: Pictures) -> list[Similar]:
    found: list[Similar] = []
    for group in _by_dataset(rows):
        rule = group[0].unit.settings.duplicates
        if rule == "samples":
            continue
        # Within a split only: an evaluation split stays as published.
        kept = list(dict.fromkeys(digest for part in group for digest in part.remaining(TRAIN)))
        pairs = find_similar(pictures.thumbnails, pictures.rows(kept))
        alike = {pictures.sha256[pair.second]: pictures.sha256[pair.first] for pair in pairs}
        found += pairs
        seen: set[str] = set()
        for part in group:
            for row, (digest, split) in enumerate(part.pictures()):
                if split != TRAIN or not digest or part.reasons[row]:
                    continue
                if digest in alike:
                    part.drop(row, "near-duplicate image", f"its picture nearly is an earlier one ({alike[digest][:16]})")
                elif rule == "records" and digest in seen:
                    part.drop(row, "duplicate image", "an earlier record has the same picture")
                seen.add(digest)
    return found


def _drop_captions(rows: Sequence[_Rows], store: Store, folder: str) -> None:
    for group in _by_dataset(rows):
        threshold = group[0].unit.settings.duplicate_captions
        if threshold is None:
            continue
        places = [
            (part, row) for part in group for row, split in enumerate(part.column("split")) if split == TRAIN and not part.reasons[row]
        ]
        texts = {id(part): part.captions(store, folder) for part in group}
        for (part, row), earlier in zip(places, repeated_captions([texts[id(part)][row] for part, row in places], threshold), strict=True):
            if earlier is not None:
                first, first_row = places[earlier]
                part.drop(row, "duplicate caption", f"nearly the caption of {first.table.column('source')[first_row].as_py()}")


def _cap(rows: Sequence[_Rows]) -> None:
    for group in _by_dataset(rows):
        cap = group[0].unit.settings.cap
        if cap is None:
            continue
        for split in sorted({split for part in group for split in part.column("split")}):
            remaining = sorted((identity, n, row) for n, part in enumerate(group) for row, identity in part.remaining_rows(split))
            for _, n, row in remaining[cap:]:
                group[n].drop(row, "over the cap", f"{len(remaining)} remained, the cap is {cap}")


def _by_dataset(rows: Sequence[_Rows]) -> list[list[_Rows]]:
    groups: dict[str, list[_Rows]] = defaultdict(list)
    for part in rows:
        groups[part.unit.dataset].append(part)
    return list(groups.values())
