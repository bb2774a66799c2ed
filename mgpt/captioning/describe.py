"""The `describe` stage's body: the pretrained model describes training images, and what can be mended and passes becomes MiniGPT-4's
instruction data.

After the construction of the second stage's data in the MiniGPT-4 paper: random images, the conversational prompt, a "Continue" turn for
short answers, a repair step, filters, and a person's review.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgpt.captioning.filters import Filters
from mgpt.captioning.repair import Repaired, change, repairer
from mgpt.captioning.report import write_describe_report
from mgpt.captioning.review import ReviewRow, digest, read_review, write_review
from mgpt.config.evaluation import DescribeSettings
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.data.types import SCHEMA, Sample, Turn
from mgpt.inference.types import CheckpointRequest, GenerationBackend, GenerationOutput, GenerationRequest, ModelSource
from mgpt.storage import Entry, Manifest, Store, write_atomic

DATASET, TASK, SPLIT = "described", "describe", "train"
CHECKPOINT = "pretrain"
CALLS_AT_ONCE = 8  # requests to a repairing endpoint


@dataclass(frozen=True)
class DescribeRequest:
    """`weights`: folder of the pretrained trainables. `folder`: URI below which the shards go. `out`: where manifest, review file and
    report go.
    """

    settings: DescribeSettings
    store: Store
    curated: Manifest
    backbones: Mapping[str, str | Path]
    weights: Path
    folder: str
    out: Path


@dataclass(frozen=True)
class Description:
    """One image's description on its way. `reason`: why it goes, empty where it stays. `decision`: the reviewer's, empty where there is
    none.
    """

    sample: Sample
    answer: GenerationOutput
    repaired: Repaired
    change: float
    reason: str
    decision: str = ""
    stale: bool = False

    @property
    def survives(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class DescribeResult:
    """`counts`: images, continued, kept, reviewed, and one `dropped_<reason>` each; they add up: images = kept + all dropped."""

    manifest: Manifest
    counts: dict[str, int]
    descriptions: list[Description] = field(repr=False)

    @property
    def summary(self) -> dict[str, object]:
        """Rows for the stage's summary."""
        dropped = {
            name.removeprefix("dropped_"): count for name, count in self.counts.items() if name.startswith("dropped_")
        }
        reasons = (
            ", ".join(f"{count} {name}" for name, count in sorted(dropped.items(), key=lambda pair: -pair[1])) or "none"
        )
        kept = [one.change for one in self.descriptions if one.survives]
        return {
            "images": self.counts["images"],
            "kept": self.counts["kept"],
            "dropped": reasons,
            "changed by repair": f"{float(np.mean(kept)) if kept else 0.0:.0%} of the words of the kept",
        }


def describe(request: DescribeRequest, answer_all: GenerationBackend) -> DescribeResult:
    """Write the surviving descriptions as curated Samples (dataset `described`, task `describe`), `manifest.json`, `review.csv`,
    `metrics.json` and `report.md`.

    Raises ValueError when there are no images, the review file is unusable, the endpoint fails, or fewer than `minimum_survivors`
    survive (the review and report are written first, the manifest is not).
    """
    settings = request.settings
    reviewed = read_review(settings.review) if settings.review else {}
    samples = choose_images(request.store, request.curated, settings)
    answers = _generate(request, samples, answer_all)
    descriptions = _decide(settings, _mend(settings, samples, answers), reviewed)
    result = DescribeResult(Manifest([]), count(descriptions), descriptions)
    write_atomic(request.out / "review.csv", write_review(_review_row(one) for one in descriptions))
    write_describe_report(
        result.counts, [(one.answer, one.repaired.text, one.change, one.reason) for one in descriptions], request.out
    )
    if result.counts["kept"] < settings.minimum_survivors:
        raise ValueError(
            f"describe.minimum_survivors: {result.counts['kept']} of {len(samples)} descriptions survive, fewer than "
            f"{settings.minimum_survivors}; "
            f"see the reasons in {request.out / 'report.md'}, train the pretrain stage longer or loosen describe.filters"
        )
    manifest = write_samples(
        request.store, request.folder, [_curated(one) for one in descriptions if one.survives], settings.shard_rows
    )
    manifest.save(request.out / "manifest.json")
    return DescribeResult(manifest, result.counts, descriptions)


def choose_images(store: Store, curated: Manifest, settings: DescribeSettings) -> list[Sample]:
    """`settings.images` different images (fewer where there are fewer), drawn by the seed from the training shards of the named
    datasets.

    Only shards that hold a drawn row are read. Raises ValueError when the datasets have no training images.
    """
    entries = sorted(
        (
            entry
            for entry in curated.entries
            if entry.meta.get("dataset") in settings.datasets and entry.meta.get("split") == SPLIT
        ),
        key=lambda e: e.name,
    )
    rows = [(number, row) for number, entry in enumerate(entries) for row in range(int(entry.meta["rows"]))]
    if not rows:
        have = sorted({str(entry.meta.get("dataset")) for entry in curated.entries if entry.meta.get("split") == SPLIT})
        raise ValueError(
            f"describe.datasets: {', '.join(settings.datasets)} has no training samples; the curated datasets are "
            f"{', '.join(have) or 'none'}"
        )
    drawn = [rows[i] for i in np.random.default_rng(settings.seed).permutation(len(rows))]
    chosen: dict[str, Sample] = {}
    for start in range(0, len(drawn), settings.images):
        wanted = drawn[start : start + settings.images]
        read = _read_rows(store, entries, wanted)
        for place in wanted:
            sample = read[place]
            if sample.image is not None and len(chosen) < settings.images:
                chosen.setdefault(hashlib.sha256(sample.image).hexdigest(), sample)
        if len(chosen) == settings.images:
            break
    if not chosen:
        raise ValueError(
            f"describe.datasets: the samples of {', '.join(settings.datasets)} have no images; name datasets with images"
        )
    return list(chosen.values())


def _read_rows(
    store: Store, entries: Sequence[Entry], places: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Sample]:
    found = {}
    for number in sorted({number for number, _ in places}):
        table = pq.read_table(io.BytesIO(store.read(entries[number].uri)))
        wanted = [row for shard, row in places if shard == number]
        for row, values in zip(wanted, table.take(wanted).to_pylist(), strict=True):
            found[number, row] = Sample.from_row(values)
    return found


def _generate(
    request: DescribeRequest, samples: Sequence[Sample], answer_all: GenerationBackend
) -> list[GenerationOutput]:
    settings = request.settings
    message = {"role": "user", "content": IMAGE_PREFIX + settings.prompt}
    asks = [
        CheckpointRequest(
            GenerationRequest((sample.image or b"",), (message,)),
            (CHECKPOINT,),
            settings.max_new_tokens,
            settings.continue_below,
        )
        for sample in samples
    ]
    source = ModelSource.of(request.backbones, {CHECKPOINT: request.weights}, settings.format, settings.generation)
    answers = answer_all(source, asks)
    missing = sum(CHECKPOINT not in found for found in answers)
    if missing:
        raise ValueError(f"describe: {missing} of {len(asks)} images got no description; run the stage again")
    return [found[CHECKPOINT] for found in answers]


def _mend(
    settings: DescribeSettings, samples: Sequence[Sample], answers: Sequence[GenerationOutput]
) -> list[Description]:
    mend, filters = repairer(settings.repair), Filters(settings.filters)
    with ThreadPoolExecutor(CALLS_AT_ONCE if settings.repair.url else 1) as pool:
        mended = list(pool.map(mend, (given.text for given in answers)))
    descriptions = []
    for sample, given, repaired in zip(samples, answers, mended, strict=True):
        changed = change(given.text, repaired.text)
        reason = repaired.rejected or filters.reason(repaired.text, changed, next(iter(sample.references), ""))
        descriptions.append(Description(sample, given, repaired, changed, reason))
    return descriptions


def _decide(
    settings: DescribeSettings, descriptions: Sequence[Description], reviewed: Mapping[str, ReviewRow]
) -> list[Description]:
    """The reviewer's word stands above the filters'; a decision on another generated text counts as stale, which is no decision."""
    decided = []
    for one in descriptions:
        row = reviewed.get(one.sample.id)
        stale = row is not None and bool(row.decision) and row.digest != digest(one.answer.text)
        decision = row.decision if row is not None and not stale else ""
        text, reason = one.repaired, one.reason
        if row is not None and decision == "accept":
            text, reason = (
                Repaired(
                    " ".join(row.text.split()),
                    one.repaired.steps + (("reviewer",) if row.text != one.repaired.text else ()),
                ),
                "",
            )
        elif decision == "reject":
            reason = "reviewer"
        elif not reason and not settings.accept_unreviewed:
            reason = "unreviewed"
        decided.append(
            Description(one.sample, one.answer, text, change(one.answer.text, text.text), reason, decision, stale)
        )
    return decided


def count(descriptions: Sequence[Description]) -> dict[str, int]:
    """See `DescribeResult.counts`."""
    counts = {
        "images": len(descriptions),
        "kept": sum(one.survives for one in descriptions),
        "repaired": sum(bool(one.repaired.steps) for one in descriptions),
        "accepted_by_reviewer": sum(one.decision == "accept" for one in descriptions),
        "rejected_by_reviewer": sum(one.decision == "reject" for one in descriptions),
        "stale_decisions": sum(one.stale for one in descriptions),
    }
    return counts | {
        f"dropped_{reason}": number
        for reason, number in sorted(Counter(one.reason for one in descriptions if one.reason).items())
    }


def _review_row(one: Description) -> ReviewRow:
    image = f"{one.sample.dataset}/{one.sample.source}"
    return ReviewRow(
        one.sample.id,
        one.decision,
        one.repaired.text,
        one.reason,
        one.change,
        " ".join(one.repaired.steps),
        one.answer.text,
        image,
        digest(one.answer.text),
    )


def _curated(one: Description) -> Sample:
    sample = one.sample
    return Sample.create(
        dataset=DATASET, split=SPLIT, task=TASK, image=sample.image, width=sample.width, height=sample.height,
        turns=(Turn("user", ""), Turn("assistant", one.repaired.text)), licence=sample.licence, source=f"{sample.dataset}/{sample.source}",
        extra={key: sample.extra[key] for key in ("key", "objects") if key in sample.extra},
    )  # fmt: skip


def write_samples(store: Store, folder: str, samples: Sequence[Sample], shard_rows: int) -> Manifest:
    """Parquet shards `<folder>/described/train/<n>.parquet` and their manifest; the same samples give the same bytes."""
    entries = []
    for number, start in enumerate(range(0, len(samples), shard_rows)):
        rows = [sample.to_row() for sample in samples[start : start + shard_rows]]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
        name = f"{DATASET}/{SPLIT}/{number:05d}.parquet"
        store.write(f"{folder.rstrip('/')}/{name}", buffer.getvalue())
        entries.append(store.entry(name, f"{folder.rstrip('/')}/{name}", dataset=DATASET, split=SPLIT, rows=len(rows)))
    return Manifest(entries)
