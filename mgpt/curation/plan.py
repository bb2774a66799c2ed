"""What there is to curate: one unit of work a file of a dataset, in an order that no number of workers changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mgpt.config.sources import CurateSettings, DatasetSettings, SourceSettings
from mgpt.data.archives import RejectedMember
from mgpt.data.datasets import READERS, Part
from mgpt.data.synthetic.formats import DATASETS
from mgpt.download import source_folder
from mgpt.storage import Manifest, Store, is_remote

_LARGE_BYTES = 64 << 20

# Settings that decide what a single record becomes; the others act later, on all records together.
RECORD_RULES = {
    "minimum_side", "maximum_aspect", "maximum_pixels", "maximum_bytes", "caption_minimum_characters", "text_maximum_characters",
    "box_tolerance", "box_minimum_side", "licences",
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """One file of one dataset. `name` is unique and holds a digest of everything that decides the unit's result."""

    name: str
    dataset: str
    source: str
    licence: str
    settings: DatasetSettings
    part: Part


@dataclass(frozen=True)
class Plan:
    """Units in their final order, and the archive members that were refused, by source."""

    units: list[Unit]
    refused: dict[str, list[RejectedMember]]


def make_plan(
    manifest: Manifest, sources: Mapping[str, SourceSettings], settings: CurateSettings, store: Store
) -> Plan:
    """Every file of every dataset of `sources`.

    Raises:
        ValueError: all mistakes at once: an unknown reader, a dataset named twice or without files, a source that was not downloaded.
    """
    units: list[Unit] = []
    refused: dict[str, list[RejectedMember]] = {}
    problems: list[str] = []
    for name, source in sources.items():
        if not source.datasets:
            continue
        try:
            folder, refused[name] = source_folder(manifest, name, store)
        except ValueError as error:
            problems.append(str(error))
            continue
        digest = hashlib.sha256(
            json.dumps([[e.name, e.sha256] for e in manifest.select(source=name)]).encode()
        ).hexdigest()
        for dataset, wanted in source.datasets.items():
            where = f"sources.{name}.datasets.{dataset}"
            if any(unit.dataset == dataset for unit in units):
                problems.append(f"{where}: another source has a dataset of this name; rename one")
                continue
            try:
                parts = _parts(_located(wanted, source), folder, where, settings.part_records)
            except ValueError as error:
                problems.append(str(error))
                continue
            units += [
                _unit(len(units) + n, dataset, name, source, wanted, part, settings, digest)
                for n, part in enumerate(parts)
            ]
    if not units and not problems:
        problems.append("no source has datasets: name at least one under sources.<source>.datasets, with its reader")
    if problems:
        raise ValueError("\n".join(problems))
    return Plan(units, refused)


def _located(wanted: DatasetSettings, source: SourceSettings) -> DatasetSettings:
    place = DATASETS.get(wanted.reader) if source.kind == "scenes" and wanted.root is None else None
    return wanted if place is None else wanted.model_copy(update={"root": place.root, "images": place.images})


def _parts(wanted: DatasetSettings, folder: str, where: str, part_records: int) -> list[Part]:
    if wanted.reader not in READERS:
        raise ValueError(f"{where}.reader: {wanted.reader!r} is not a reader; use one of {', '.join(sorted(READERS))}")
    root = f"{folder}/{wanted.root or '.'}".removesuffix("/.")
    images = None if wanted.images is None else f"{folder}/{wanted.images}".removesuffix("/.")
    try:
        parts = READERS[wanted.reader].files(root, images)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    chosen = [part for part in parts if not wanted.splits or part.split in wanted.splits]
    if not chosen:
        found = ", ".join(sorted({part.split for part in parts})) or "no file at all"
        raise ValueError(f"{where}.splits: {list(wanted.splits)} are not there; found: {found}")
    return [piece for part in chosen for piece in _pieces(wanted.reader, part, part_records)]


def _pieces(reader: str, part: Part, part_records: int) -> list[Part]:
    # Counting rows reads the file once, which only pays where a file is worth several tasks.
    path = Path(part.root) / part.path
    large = not is_remote(part.root) and path.exists() and path.stat().st_size > _LARGE_BYTES and path.suffix != ".tar"
    return READERS[reader].divide(part, part_records) if large else [part]


def _unit(
    number: int,
    dataset: str,
    name: str,
    source: SourceSettings,
    wanted: DatasetSettings,
    part: Part,
    settings: CurateSettings,
    digest: str,
) -> Unit:
    rules = settings.model_dump(mode="json", include=RECORD_RULES)
    own = wanted.model_dump(mode="json", include={"reader", "text", "root", "images"})
    place = {key: value for key, value in asdict(part).items() if key in ("path", "split", "first", "count")}
    content = [dataset, name, source.licence, own, rules, place, digest]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Unit(f"{number:05d}-{key}", dataset, name, source.licence, wanted, part)
