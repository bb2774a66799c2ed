"""The `describe` stage: the pretrained model writes MiniGPT-4's instruction data.

Descriptions of training images that pass repair, filters and review become the data. The construction follows the
second stage of the MiniGPT-4 paper: random images, the conversational prompt, a "Continue" turn for short answers,
repair, filters, and a person's review.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.captioning.filters import Filters
from mgpt.captioning.repair import changed_share, make_repairer
from mgpt.captioning.report import write_describe_report
from mgpt.captioning.review import ReviewRow, digest, read_review, write_review
from mgpt.captioning.types import Description, RepairedText
from mgpt.config.evaluation import DescribeSettings
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.data.types import SCHEMA, Sample, Turn
from mgpt.inference.types import CheckpointRequest, GenerationBackend, GenerationOutput, GenerationRequest, ModelSource
from mgpt.storage import Entry, Manifest, Store, write_atomic

DATASET, TASK, SPLIT = "described", "describe", "train"
CHECKPOINT = "pretrain"
PARALLEL_REQUESTS = 8  # to a repair endpoint
Position = tuple[int, int]  # number of a shard, row in it


@dataclass(frozen=True)
class DescribeRequest:
    """Inputs of the stage.

    Attributes:
        curated: manifest of the `curate` stage.
        backbones: name -> folder or URI.
        weights: folder of the pretrained model's trainable parameters.
        folder: URI under which the shards are written.
        out: folder of the manifest, the review file and the report.
    """

    settings: DescribeSettings
    store: Store
    curated: Manifest
    backbones: Mapping[str, str | Path]
    weights: Path
    folder: str
    out: Path


@dataclass(frozen=True)
class DescribeResult:
    """Outputs of the stage; `counts` as returned by `count`."""

    manifest: Manifest
    counts: dict[str, int]
    descriptions: list[Description] = field(repr=False)

    @property
    def summary(self) -> dict[str, object]:
        """Rows of the stage's summary."""
        reasons = Counter(one.reject_reason for one in self.descriptions if not one.kept)
        dropped = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        changes = [one.change for one in self.descriptions if one.kept]
        return {
            "images": self.counts["images"],
            "kept": self.counts["kept"],
            "dropped": ", ".join(f"{number} {reason}" for reason, number in dropped) or "none",
            "changed by repair": f"{float(np.mean(changes)) if changes else 0.0:.0%} of the words of kept descriptions",
        }


def describe(request: DescribeRequest, answer_all: GenerationBackend) -> DescribeResult:
    """Writes kept descriptions as curated Samples (dataset `described`, task `describe`).

    Also writes `manifest.json`, `review.csv`, `metrics.json` and `report.md` into `request.out`.

    Args:
        answer_all: generation backend.

    Raises:
        ValueError: there are no images, the review file is invalid, the repair endpoint fails, or fewer than
        `minimum_survivors`
            descriptions are kept (review file and report are written before, the manifest is not).
    """
    settings = request.settings
    reviewed = read_review(settings.review) if settings.review else {}
    samples = choose_images(request.store, request.curated, settings)
    answers = _generate(request, samples, answer_all)
    filtered = _repair_and_filter(settings, samples, answers)
    descriptions = [_apply_review(settings, one, reviewed.get(one.sample.id)) for one in filtered]
    counts = count(descriptions)
    write_atomic(request.out / "review.csv", write_review(_review_row(one) for one in descriptions))
    write_describe_report(counts, descriptions, request.out)
    if counts["kept"] < settings.minimum_survivors:
        raise ValueError(
            f"describe.minimum_survivors: {counts['kept']} of {len(samples)} descriptions are kept, fewer than "
            f"{settings.minimum_survivors}; see the reasons in {request.out / 'report.md'}, and pretrain longer or "
            f"relax describe.filters"
        )
    curated = [_curated(one) for one in descriptions if one.kept]
    manifest = write_samples(request.store, request.folder, curated, settings.shard_rows)
    manifest.save(request.out / "manifest.json")
    return DescribeResult(manifest, counts, descriptions)


def choose_images(store: Store, curated: Manifest, settings: DescribeSettings) -> list[Sample]:
    """Draws `settings.images` distinct images, or as many as there are, from training shards of the named datasets.

    The draw is seeded. Only shards with a drawn row are read.

    Raises:
        ValueError: the datasets have no training samples, or these have no images.
    """
    training = sorted((entry for entry in curated.entries if entry.meta.get("split") == SPLIT), key=lambda e: e.name)
    entries = [entry for entry in training if entry.meta.get("dataset") in settings.datasets]
    rows = [(number, row) for number, entry in enumerate(entries) for row in range(int(entry.meta["rows"]))]
    if not rows:
        have = ", ".join(sorted({str(entry.meta.get("dataset")) for entry in training})) or "none"
        raise ValueError(
            f"describe.datasets: {', '.join(settings.datasets)} has no training samples; name one of the "
            f"curated datasets: {have}"
        )
    drawn = [rows[i] for i in np.random.default_rng(settings.seed).permutation(len(rows))]
    chosen: dict[str, Sample] = {}
    for start in range(0, len(drawn), settings.images):
        for sample in _read_rows(store, entries, drawn[start : start + settings.images]):
            if sample.image is not None and len(chosen) < settings.images:
                chosen.setdefault(hashlib.sha256(sample.image).hexdigest(), sample)
        if len(chosen) == settings.images:
            break
    if not chosen:
        raise ValueError(
            f"describe.datasets: the samples of {', '.join(settings.datasets)} have no images; name datasets "
            f"with images"
        )
    return list(chosen.values())


def _read_rows(store: Store, entries: Sequence[Entry], positions: Sequence[Position]) -> list[Sample]:
    """Reads the samples at the positions, in their order."""
    found: dict[Position, Sample] = {}
    for number in sorted({number for number, _ in positions}):
        table = pq.read_table(io.BytesIO(store.read(entries[number].uri)))
        rows = [row for shard, row in positions if shard == number]
        for row, values in zip(rows, table.take(rows).to_pylist(), strict=True):
            found[number, row] = Sample.from_row(values)
    return [found[position] for position in positions]


def _generate(
    request: DescribeRequest, samples: Sequence[Sample], answer_all: GenerationBackend
) -> list[GenerationOutput]:
    settings = request.settings
    message = {"role": "user", "content": IMAGE_PREFIX + settings.prompt}
    requests = [
        CheckpointRequest(
            GenerationRequest((sample.image or b"",), (message,)),
            (CHECKPOINT,),
            settings.max_new_tokens,
            settings.continue_below,
        )
        for sample in samples
    ]
    source = ModelSource.of(request.backbones, {CHECKPOINT: request.weights}, settings.format, settings.generation)
    answers = answer_all(source, requests)
    missing = sum(CHECKPOINT not in found for found in answers)
    if missing:
        raise ValueError(f"describe: {missing} of {len(requests)} images have no description; run the stage again")
    return [found[CHECKPOINT] for found in answers]


def _repair_and_filter(
    settings: DescribeSettings, samples: Sequence[Sample], answers: Sequence[GenerationOutput]
) -> list[Description]:
    repair, filters = make_repairer(settings.repair), Filters(settings.filters)
    with ThreadPoolExecutor(PARALLEL_REQUESTS if settings.repair.url else 1) as pool:
        texts = list(pool.map(repair, (answer.text for answer in answers)))
    descriptions = []
    for sample, answer, repaired in zip(samples, answers, texts, strict=True):
        change = changed_share(answer.text, repaired.text)
        caption = next(iter(sample.references), "")
        reason = repaired.reject_reason or filters.reject_reason(repaired.text, change, caption)
        descriptions.append(Description(sample, answer, repaired, change, reason))
    return descriptions


def _apply_review(settings: DescribeSettings, one: Description, row: ReviewRow | None) -> Description:
    """Applies the reviewer's decision, which overrides the filters unless it was made on another generated text."""
    if row is not None and row.decision:
        if row.digest != digest(one.answer.text):
            one = replace(one, stale=True)
        elif row.decision == "reject":
            return replace(one, reject_reason="reviewer", decision="reject")
        else:
            steps = one.repaired.steps + (("reviewer",) if row.text != one.repaired.text else ())
            repaired = RepairedText(" ".join(row.text.split()), steps)
            change = changed_share(one.answer.text, repaired.text)
            return Description(one.sample, one.answer, repaired, change, reject_reason="", decision="accept")
    if one.kept and not settings.accept_unreviewed:
        return replace(one, reject_reason="unreviewed")
    return one


def count(descriptions: Sequence[Description]) -> dict[str, int]:
    """Counts descriptions by outcome, with one `dropped_<reason>` a reject reason; images = kept + all dropped."""
    dropped = Counter(one.reject_reason for one in descriptions if not one.kept)
    return {
        "images": len(descriptions),
        "kept": sum(one.kept for one in descriptions),
        "repaired": sum(bool(one.repaired.steps) for one in descriptions),
        "accepted_by_reviewer": sum(one.decision == "accept" for one in descriptions),
        "rejected_by_reviewer": sum(one.decision == "reject" for one in descriptions),
        "stale_decisions": sum(one.stale for one in descriptions),
        **{f"dropped_{reason}": number for reason, number in sorted(dropped.items())},
    }


def _review_row(one: Description) -> ReviewRow:
    return ReviewRow(
        key=one.sample.id,
        decision=one.decision,
        text=one.repaired.text,
        reason=one.reject_reason,
        change=one.change,
        steps=" ".join(one.repaired.steps),
        original=one.answer.text,
        image=f"{one.sample.dataset}/{one.sample.source}",
        digest=digest(one.answer.text),
    )


def _curated(one: Description) -> Sample:
    sample = one.sample
    return Sample.create(
        dataset=DATASET,
        split=SPLIT,
        task=TASK,
        image=sample.image,
        width=sample.width,
        height=sample.height,
        turns=(Turn("user", ""), Turn("assistant", one.repaired.text)),
        licence=sample.licence,
        source=f"{sample.dataset}/{sample.source}",
        extra={key: sample.extra[key] for key in ("key", "objects") if key in sample.extra},
    )


def write_samples(store: Store, folder: str, samples: Sequence[Sample], shard_rows: int) -> Manifest:
    """Writes Parquet shards `<folder>/described/train/<n>.parquet` and returns their manifest.

    The same samples give the same bytes.
    """
    entries = []
    for number, start in enumerate(range(0, len(samples), shard_rows)):
        rows = [sample.to_row() for sample in samples[start : start + shard_rows]]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
        name = f"{DATASET}/{SPLIT}/{number:05d}.parquet"
        uri = f"{folder.rstrip('/')}/{name}"
        store.write(uri, buffer.getvalue())
        entries.append(store.entry(name, uri, dataset=DATASET, split=SPLIT, rows=len(rows)))
    return Manifest(entries)
