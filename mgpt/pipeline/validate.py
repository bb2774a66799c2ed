"""`mgpt data validate`: the checks of curation on a user's own data, in one process, before anything is trained."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mgpt.config.sources import CurateSettings, DatasetSettings, DownloadSettings, SourceSettings
from mgpt.curation.dataset_stats import Marker, plain_marks
from mgpt.curation.stage import Curation, NoSamplesError, curate
from mgpt.data.datasets import READERS
from mgpt.data.shards import scan_samples
from mgpt.data.tasks import render
from mgpt.data.types import Sample
from mgpt.download import download
from mgpt.storage import Manifest, Store

OFFENDERS = 5  # rejected rows that are listed
SHOWN = 5  # conversations that are shown
_FATAL = ("missing image",)


class ValidationError(ValueError):
    """The data would not train: no samples, no supervised text, or missing images; lists the first rejected rows."""


@dataclass(frozen=True)
class Validation:
    """The findings.

    `report` holds counts and reject reasons, as a curation's; `offenders` the first rejected rows; `shown` a few
    conversations as they are trained on, each as pieces of text with True where the loss sees them.
    """

    report: dict[str, Any]
    offenders: list[dict[str, str]]
    shown: list[list[tuple[str, bool]]]

    def text(self) -> str:
        """Returns the findings for a terminal; supervised text stands between » and «."""
        lines = [f"{self.report['records']} records, {self.report['kept']} usable, {self.report['quarantined']} not"]
        lines += [f"  {count:>8}  {reason}" for reason, count in self.report["reasons"].items()]
        lines += [f"  {count:>8}  repaired: {what}" for what, count in self.report["repaired"].items()]
        if self.offenders:
            lines += [
                "first rejected rows:",
                *(f"  {row['source']}: {row['reason']} ({row['detail']})" for row in self.offenders),
            ]
        for marks in self.shown:
            lines += [
                "trained on as:",
                "  " + "".join(f"»{text}«" if supervised else text for text, supervised in marks).replace("\n", "\n  "),
            ]
        return "\n".join(lines)


def validate(
    path: Path,
    reader: str = "jsonl",
    settings: CurateSettings | None = None,
    mark: Marker = plain_marks,
    report: Callable[[str], None] = lambda line: None,
) -> Validation:
    """Validates a folder, or one JSONL file in it, as the curate stage would.

    Raises:
        ValidationError: 0 samples, 0 supervised characters, or missing images; the message has all findings.
        ValueError: the path or the reader does not exist, or the folder has none of the reader's files.
    """
    if reader not in READERS:
        raise ValueError(f"reader {reader!r} is not known; use one of {', '.join(sorted(READERS))}")
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a folder, or a JSONL file with its images next to it")
    if path.is_dir() and not any(child.is_file() for child in path.rglob("*")):
        raise ValueError(f"{path} has no files; put a JSONL file there, with its images next to it")
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(scratch)
        found, problem = _curate(path, reader, settings or CurateSettings(), store, report)
        validation = Validation(found.report, _offenders(found.quarantine, store), _shown(found.manifest, mark))
    if problem or not any(text.strip() for marks in validation.shown for text, supervised in marks if supervised):
        raise ValidationError(f"{path}: {problem or '0 supervised characters'}\n{validation.text()}")
    return validation


def _curate(
    path: Path, reader: str, settings: CurateSettings, store: Store, report: Callable[[str], None]
) -> tuple[Curation, str]:
    folder, only = (path.parent, path.name) if path.is_file() else (path, "")
    dataset = DatasetSettings(reader=reader, duplicates="samples")
    sources = {"own": SourceSettings(locations=(str(folder),), datasets={"own": dataset})}
    manifest = download(sources, DownloadSettings(), store, report).manifest
    if only:
        others = [entry for entry in manifest.entries if entry.name.endswith(".jsonl") and entry.name != f"own/{only}"]
        for entry in others:
            store.delete(entry.uri)
        manifest = Manifest([entry for entry in manifest.entries if entry not in others])
    alone = settings.model_copy(update={"workers": 0, "card_samples": 0})
    try:
        found = curate(manifest, sources, alone, store, store.uri("curated"), report)
    except NoSamplesError as error:
        return Curation(Manifest([]), error.quarantine, error.report), "0 samples"
    missing = sum(found.report["reasons"].get(reason, 0) for reason in _FATAL)
    return found, f"{missing} images are missing" if missing else ""


def _offenders(quarantine: Manifest, store: Store) -> list[dict[str, str]]:
    """Returns the first rejected rows: those that make the validation fail before the others."""
    with store.open(quarantine.entries[0].uri) as file:
        rejected = pq.read_table(file)
    fatal = pc.is_in(rejected.column("reason"), pa.array(_FATAL))
    return pa.concat_tables([rejected.filter(fatal), rejected.filter(pc.invert(fatal))]).slice(0, OFFENDERS).to_pylist()


def _shown(manifest: Manifest, mark: Marker) -> list[list[tuple[str, bool]]]:
    """Returns the first sample of each task that the first shards hold."""
    samples: dict[str, Sample] = {}
    for entry in manifest.entries[:SHOWN]:
        for sample in scan_samples(entry.uri):
            if sample.task not in samples and len(samples) < SHOWN:
                samples[sample.task] = sample
    return [mark(render(sample, random.Random(sample.id))) for sample in samples.values()]
