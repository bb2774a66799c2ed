"""The plan of a curation: one unit of work per file of a dataset, in an order that does not depend on the number of
workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mgpt.config.sources import CurateSettings, DatasetSettings, SourceSettings
from mgpt.data.archives import RejectedMember
from mgpt.data.datasets import READERS, Part
from mgpt.data.extract import source_folder
from mgpt.data.synthetic.formats import DATASETS
from mgpt.storage import Manifest, Store, is_remote

_LARGE_BYTES = 64 << 20

# Settings of the first pass, on single records; the others act on all records together.
RECORD_SETTINGS = {
    "minimum_side",
    "maximum_aspect",
    "maximum_pixels",
    "maximum_bytes",
    "caption_minimum_characters",
    "text_maximum_characters",
    "box_tolerance",
    "box_minimum_side",
    "licences",
}


@dataclass(frozen=True)
class Unit:
    """One file of one dataset. `name` is unique and contains a digest of everything that determines the result."""

    name: str
    dataset: str
    source: str
    licence: str
    settings: DatasetSettings
    part: Part


@dataclass(frozen=True)
class Plan:
    """Units in their final order, and the rejected archive members by source."""

    units: list[Unit]
    refused: dict[str, list[RejectedMember]]


def make_plan(
    manifest: Manifest, sources: Mapping[str, SourceSettings], settings: CurateSettings, store: Store
) -> Plan:
    """Plans every file of every dataset of `sources`.

    Raises:
        ValueError: all errors at once: an unknown reader, a dataset named twice or without files, a source that was not
            downloaded.
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
        for dataset, chosen in source.datasets.items():
            where = f"sources.{name}.datasets.{dataset}"
            if any(unit.dataset == dataset for unit in units):
                problems.append(f"{where}: another source has a dataset of this name; rename one")
                continue
            try:
                parts = _parts(_with_folders(chosen, source), folder, where, settings.part_records)
            except ValueError as error:
                problems.append(str(error))
                continue
            units += [
                _unit(len(units) + n, dataset, name, source, chosen, part, settings, digest)
                for n, part in enumerate(parts)
            ]
    if not units and not problems:
        problems.append("no source has datasets; name at least one under sources.<source>.datasets, with its reader")
    if problems:
        raise ValueError("\n".join(problems))
    return Plan(units, refused)


def _with_folders(dataset: DatasetSettings, source: SourceSettings) -> DatasetSettings:
    """Returns the dataset with its folders below the source, which are known for the shapes world."""
    folders = DATASETS.get(dataset.reader) if source.kind == "scenes" and dataset.root is None else None
    return dataset if folders is None else dataset.model_copy(update={"root": folders.root, "images": folders.images})


def _parts(dataset: DatasetSettings, folder: str, where: str, part_records: int) -> list[Part]:
    if dataset.reader not in READERS:
        raise ValueError(f"{where}.reader: {dataset.reader!r} is not a reader; use one of {', '.join(sorted(READERS))}")
    root = f"{folder}/{dataset.root or '.'}".removesuffix("/.")
    images = None if dataset.images is None else f"{folder}/{dataset.images}".removesuffix("/.")
    try:
        parts = READERS[dataset.reader].files(root, images)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    chosen = [part for part in parts if not dataset.splits or part.split in dataset.splits]
    if not chosen:
        found = ", ".join(sorted({part.split for part in parts})) or "no file at all"
        raise ValueError(f"{where}.splits: {list(dataset.splits)} are not there; found: {found}")
    return [piece for part in chosen for piece in _pieces(dataset.reader, part, part_records)]


def _pieces(reader: str, part: Part, part_records: int) -> list[Part]:
    # Counting rows reads the file once, which pays only for files large enough for several tasks.
    path = Path(part.root) / part.path
    large = not is_remote(part.root) and path.exists() and path.stat().st_size > _LARGE_BYTES and path.suffix != ".tar"
    return READERS[reader].divide(part, part_records) if large else [part]


def _unit(
    number: int,
    dataset: str,
    name: str,
    source: SourceSettings,
    chosen: DatasetSettings,
    part: Part,
    settings: CurateSettings,
    digest: str,
) -> Unit:
    rules = settings.model_dump(mode="json", include=RECORD_SETTINGS)
    own = chosen.model_dump(mode="json", include={"reader", "text", "root", "images"})
    identity = {key: value for key, value in asdict(part).items() if key in ("path", "split", "first", "count")}
    content = [dataset, name, source.licence, own, rules, identity, digest]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Unit(f"{number:05d}-{key}", dataset, name, source.licence, chosen, part)
