"""The data card: one self-contained HTML page about a curated set, with its rejected records and the reasons."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mgpt.curation.dataset_stats import DatasetStats, Marker
from mgpt.curation.types import ImagePair
from mgpt.data.tasks import render
from mgpt.data.types import Sample
from mgpt.reporting.pages import data_uri, render_page
from mgpt.storage import write_atomic

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf")  # of a sample's boxes, in turn
_SIDE = 480  # pixels of a sample's longer side
_FOUND_BY = {"file": "identical file", "name": "COCO or Visual Genome number", "near-duplicate": "near-duplicate image"}
_CHART_WIDTH, _CHART_HEIGHT = 264, 120


def write_data_card(
    path: Path, report: Mapping[str, Any], stats: DatasetStats, pairs: Sequence[ImagePair], mark: Marker
) -> None:
    """Writes the page to a file; arguments as of `card_html`."""
    write_atomic(path, card_html(report, stats, pairs, mark).encode())


def card_html(report: Mapping[str, Any], stats: DatasetStats, pairs: Sequence[ImagePair], mark: Marker) -> str:
    """Renders the page.

    Args:
        report: the curation's metrics.
        stats: statistics and samples of the curated shards.
        pairs: near-duplicates to show.
        mark: splits a rendered conversation into pieces of text, each with whether the loss covers it.
    """
    return render_page(
        "data_card.html.jinja",
        shards_read=stats.shards_read,
        shards=stats.shards,
        totals=[("records in", report["records"]), ("kept", report["kept"]), ("quarantined", report["quarantined"])],
        datasets=_dataset_rows(report),
        counts=[
            ("By task", "Task", _most_common(stats.tasks)),
            ("By licence", "Licence", _most_common(stats.licences)),
            ("Reject reasons", "Reason", _most_common(report["reasons"])),
            ("Repaired", "Repair", _most_common(report["repaired"])),
        ],
        contamination=[
            (row["training"], row["evaluation"], _FOUND_BY[row["found_by"]], row["records"])
            for row in report["contamination"]
        ],
        histograms=_histograms(stats),
        pairs=[_pair_values(pair) for pair in pairs],
        samples=[_sample_values(sample, mark) for sample in stats.samples],
    )


def _dataset_rows(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            dataset,
            split,
            row["kept"],
            row["quarantined"],
            ", ".join(f"{name} {n}" for name, n in row["reasons"].items()),
        )
        for dataset, splits in report["datasets"].items()
        for split, row in splits.items()
    ]


def _most_common(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _histograms(stats: DatasetStats) -> list[dict[str, Any]]:
    return [
        _histogram("Words in the answers", stats.lengths),
        _histogram("Shorter side, pixels", stats.sides),
        _histogram("Boxes per sample", stats.boxes_each),
        _histogram("Share of the image that a box covers", stats.boxes, is_share=True),
    ]


def _histogram(title: str, values: Sequence[float], is_share: bool = False) -> dict[str, Any]:
    """Computes the bars of a chart.

    Values above the 99.5th percentile fall into the last bin; shares range from 0 to 1.
    """
    if not values:
        return {"title": title, "bars": []}
    top = 1.0 if is_share else max(float(np.quantile(values, 0.995)), 1.0)
    bins = 20 if is_share or top > 20 else int(top) + 1
    upper = top if is_share or top > 20 else bins
    counts, edges = np.histogram(np.clip(values, 0, top), bins=bins, range=(0, upper))
    width = _CHART_WIDTH / bins
    bars = [
        {
            "x": index * width + 0.5,
            "width": width - 1,
            "height": _CHART_HEIGHT * count / counts.max(),
            "label": f"{edges[index]:.3g} to {edges[index + 1]:.3g}: {count}",
        }
        for index, count in enumerate(counts)
    ]
    labels = {"top": f"{edges[-1]:.3g}", "median": f"{np.median(values):.3g}"}
    return {"title": title, "bars": bars, "width": _CHART_WIDTH, "height": _CHART_HEIGHT, **labels}


def _pair_values(pair: ImagePair) -> dict[str, str]:
    kept, removed = (data_uri(Image.fromarray(pixels), "PNG") for pixels in (pair.kept, pair.removed))
    return {"kept": kept, "removed": removed, "reason": pair.reason, "distance": f"{pair.distance:.0f}"}


def _sample_values(sample: Sample, mark: Marker) -> dict[str, Any]:
    size = ", ".join(f"{image.width}x{image.height}" for image in sample.images) or "no image"
    return {
        "image": data_uri(_draw_boxes(sample)) if sample.images else "",
        "alt": f"{sample.dataset} sample",
        "source": f"{sample.dataset} / {sample.task}, {size}, {sample.licence}",
        "text": mark(render(sample, random.Random(sample.id))),
    }


def _draw_boxes(sample: Sample) -> Image.Image:
    image = Image.open(io.BytesIO(sample.images[0].data)).convert("RGB")
    scale = _SIDE / max(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(resized)
    for number, box in enumerate(sample.boxes):
        pen.rectangle([value * scale for value in box], outline=COLOURS[number % len(COLOURS)], width=4)
    return resized
