"""The `describe` stage: the pretrained model writes MiniGPT-4's instruction data.

Descriptions of training images that pass repair, filters and review become the data. The construction follows the
second stage of the MiniGPT-4 paper: random images, the conversational prompt, a "Continue" turn for short answers,
repair, filters, and a person's review.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mgpt.captioning.filters import Filters
from mgpt.captioning.repair import changed_share, make_repairer
from mgpt.captioning.report import write_describe_report
from mgpt.captioning.review import ReviewRow, digest, read_review, write_review
from mgpt.captioning.types import Description, RepairedText
from mgpt.config.evaluation import DescribeSettings
from mgpt.data.mixture import Permutation
from mgpt.data.shards import SUFFIX, SampleReader, write_shard
from mgpt.data.tasks import IMAGE_PREFIX
from mgpt.data.types import Sample, Turn
from mgpt.inference.types import CheckpointRequest, GenerationBackend, GenerationOutput, GenerationRequest, ModelSource
from mgpt.storage import Manifest, Store, write_atomic

DATASET, TASK, SPLIT = "described", "describe", "train"
CHECKPOINT = "pretrain"
PARALLEL_REQUESTS = 8  # to a repair endpoint


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
    samples = choose_images(request.curated, settings)
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


def choose_images(curated: Manifest, settings: DescribeSettings) -> list[Sample]:
    """Draws `settings.images` distinct images, or as many as there are, from training shards of the named datasets.

    The draw is seeded. Only drawn rows are read, whatever the number of rows there are.

    Raises:
        ValueError: the datasets have no training samples, or these have no images.
    """
    training = sorted((entry for entry in curated.entries if entry.meta.get("split") == SPLIT), key=lambda e: e.name)
    entries = [entry for entry in training if entry.meta.get("dataset") in settings.datasets]
    rows = sum(int(entry.meta["rows"]) for entry in entries)
    if not rows:
        have = ", ".join(sorted({str(entry.meta.get("dataset")) for entry in training})) or "none"
        raise ValueError(
            f"describe.datasets: {', '.join(settings.datasets)} has no training samples; name one of the "
            f"curated datasets: {have}"
        )
    drawn, reader = Permutation(rows, settings.seed, DATASET), SampleReader({SPLIT: entries})
    chosen: dict[str, Sample] = {}
    for start in range(0, rows, settings.images):
        positions = range(start, min(start + settings.images, rows))
        for sample in reader.read([(SPLIT, drawn[position]) for position in positions]):
            if sample.images and len(chosen) < settings.images:
                chosen.setdefault(sample.images[0].sha256, sample)
        if len(chosen) == settings.images:
            break
    if not chosen:
        raise ValueError(
            f"describe.datasets: the samples of {', '.join(settings.datasets)} have no images; name datasets "
            f"with images"
        )
    return list(chosen.values())


def _generate(
    request: DescribeRequest, samples: Sequence[Sample], answer_all: GenerationBackend
) -> list[GenerationOutput]:
    settings = request.settings
    message = {"role": "user", "content": IMAGE_PREFIX + settings.prompt}
    requests = [
        CheckpointRequest(
            GenerationRequest((sample.images[0].data,), (message,)),
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
        images=sample.images[:1],
        turns=(Turn("user", ""), Turn("assistant", one.repaired.text)),
        licence=sample.licence,
        source=f"{sample.dataset}/{sample.source}",
        extra={key: sample.extra[key] for key in ("key", "objects") if key in sample.extra},
    )


def write_samples(store: Store, folder: str, samples: Sequence[Sample], shard_rows: int) -> Manifest:
    """Writes shards `<folder>/described/train/<n>.lance` and returns their manifest.

    The same samples give the same bytes.
    """
    entries = []
    for number, start in enumerate(range(0, len(samples), shard_rows)):
        name = f"{DATASET}/{SPLIT}/{number:05d}{SUFFIX}"
        uri = f"{folder.rstrip('/')}/{name}"
        rows = write_shard(store, uri, samples[start : start + shard_rows])
        entries.append(store.entry(name, uri, dataset=DATASET, split=SPLIT, rows=rows))
    return Manifest(entries)
