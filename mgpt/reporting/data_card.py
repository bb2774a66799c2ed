"""The data card: one HTML page without outside files that shows what a curated set holds and what it lost."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mgpt.curation.dataset_stats import DatasetStats, Marker
from mgpt.curation.types import ImagePair
from mgpt.data.tasks import render
from mgpt.data.types import Sample

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf")
_WAYS = {"file": "the same file", "name": "its number in COCO or Visual Genome", "near-duplicate": "nearly the same look"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1160px;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.7rem;margin:0 0 .2rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #d8dee6;
padding-bottom:.2rem}
p.note{color:#566}
table{border-collapse:collapse;font-size:.92rem}td,th{padding:.22rem .7rem;border-bottom:1px solid #e6eaf0;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.row{display:flex;flex-wrap:wrap;gap:1.2rem}.wide{overflow-x:auto}
figure{margin:0;width:264px;border:1px solid #e0e5ec;border-radius:8px;padding:.6rem;box-sizing:border-box;font-size:.85rem}
figure img{width:100%;image-rendering:auto;border-radius:4px;background:#f3f5f8}figcaption{overflow-wrap:anywhere}
.who{color:#566;font-size:.8rem}.text{white-space:pre-wrap;margin:.3rem 0 0;font-family:ui-monospace,monospace;font-size:.8rem}
mark{background:#ffe48a;padding:0 .1em;border-radius:3px}.pair img{width:112px;height:112px;image-rendering:pixelated;margin-right:6px}
.big{font-size:1.5rem;font-weight:600;display:block}.tiles{display:flex;gap:2.2rem;margin:1rem 0}
"""


def card_html(report: Mapping[str, Any], facts: DatasetStats, pairs: Sequence[ImagePair], mark: Marker) -> str:
    """The page. `report` is a curation's, `mark` says which part of a rendered conversation the loss sees."""
    seen = f"Histograms and samples are of {facts.shards_read} of {facts.shards} shards."
    sections = [
        "<h1>Data card</h1>",
        f'<p class="note">What was kept, what was lost and why. {seen}</p>',
        _tiles(report),
        "<h2>By dataset</h2>",
        _table(("Dataset", "Split", "Kept", "Lost", "Reasons"), _dataset_rows(report)),
        f'<div class="row"><div><h2>By task</h2>{_counts("Task", facts.tasks)}</div>',
        f"<div><h2>By licence</h2>{_counts('Licence', facts.licences)}</div>",
        f"<div><h2>Reasons of loss</h2>{_counts('Reason', report['reasons'])}</div>",
        f"<div><h2>Mended</h2>{_counts('What', report['repaired'])}</div></div>",
        f"<h2>Evaluation images found in training</h2>{_contamination(report['contamination'])}",
        f'<h2>Histograms</h2><div class="row">{_histograms(facts)}</div>',
        f'<h2>Alike</h2><p class="note">The left one stayed or is held out, the right one went.</p>{_pairs(pairs)}',
        '<h2>Samples</h2><p class="note">Images with their boxes, and the text trained on; the loss sees the <mark>marked</mark>.</p>',
        f'<div class="row">{"".join(_figure(sample, mark) for sample in facts.samples)}</div>',
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Data card</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>\n'


def _tiles(report: Mapping[str, Any]) -> str:
    named = (("records in", "records"), ("kept", "kept"), ("quarantined", "quarantined"))
    tiles = "".join(f'<div><span class="big">{report[key]:,}</span>{name}</div>' for name, key in named)
    return f'<div class="tiles">{tiles}</div>'


def _dataset_rows(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            dataset,
            split,
            row["kept"],
            row["quarantined"],
            ", ".join(f"{reason} {count}" for reason, count in row["reasons"].items()),
        )
        for dataset, splits in report["datasets"].items()
        for split, row in splits.items()
    ]


def _contamination(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [(row["training"], row["evaluation"], _WAYS[row["found_by"]], row["records"]) for row in found]
    head = ("Removed from", "Held out in", "Found by", "Records")
    return _table(head, rows) if rows else '<p class="note">none</p>'


def _counts(name: str, counts: Mapping[str, int]) -> str:
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _table((name, "Count"), rows) if rows else '<p class="note">none</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any, tag: str = "td") -> str:
        number = isinstance(value, int)
        return f"<{tag}{' class=n' if number else ''}>{f'{value:,}' if number else html.escape(str(value))}</{tag}>"

    top = "".join(cell(name, "th") for name in head)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _histograms(facts: DatasetStats) -> str:
    shown = (
        ("Words of the answers", facts.lengths, False),
        ("Shorter side, pixels", facts.sides, False),
        ("Boxes a sample", facts.boxes_each, False),
        ("Share of the image that a box covers", facts.boxes, True),
    )
    return "".join(_histogram(title, values, share) for title, values, share in shown)


def _histogram(title: str, values: Sequence[float], share: bool, width: int = 264, height: int = 120) -> str:
    if not values:
        return f"<figure><b>{title}</b><p>none</p></figure>"
    top = 1.0 if share else max(float(np.quantile(values, 0.995)), 1.0)
    bins = 20 if share or top > 20 else int(top) + 1
    counts, edges = np.histogram(np.clip(values, 0, top), bins=bins, range=(0, top if share or top > 20 else bins))
    bar = width / bins
    bars = "".join(
        _bar(place * bar, bar, height * count / counts.max(), height, edges[place : place + 2], count)
        for place, count in enumerate(counts)
    )
    axis = f'<text x="0" y="{height + 14}">0</text><text x="{width}" y="{height + 14}" text-anchor="end">{edges[-1]:.3g}</text>'
    middle = f'<text x="{width / 2}" y="{height + 14}" text-anchor="middle">median {np.median(values):.3g}</text>'
    svg = f'<svg viewBox="0 0 {width} {height + 18}" font-size="11" fill="#566" width="100%">{bars}{axis}{middle}</svg>'
    return f"<figure><b>{title}</b>{svg}</figure>"


def _bar(left: float, width: float, tall: float, height: int, edges: np.ndarray, count: int) -> str:
    place = f'x="{left + 0.5:.1f}" y="{height - tall:.1f}" width="{width - 1:.1f}" height="{tall:.1f}"'
    return f'<rect {place} fill="#4c78a8"><title>{edges[0]:.3g} to {edges[1]:.3g}: {count}</title></rect>'


def _pairs(pairs: Sequence[ImagePair]) -> str:
    if not pairs:
        return '<p class="note">none</p>'
    shown = "".join(
        f'<figure class="pair">{_thumbnail(pair.kept)}{_thumbnail(pair.removed)}<figcaption>{html.escape(pair.reason)}, '
        f"difference {pair.distance:.0f} of 255</figcaption></figure>"
        for pair in pairs
    )
    return f'<div class="row">{shown}</div>'


def _thumbnail(pixels: np.ndarray) -> str:
    return _image(Image.fromarray(pixels), "thumbnail of an image", "PNG")


def _image(image: Image.Image, text: str, kind: str = "JPEG") -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 85} if kind == "JPEG" else {}))
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/{kind.lower()};base64,{data}">'


def _figure(sample: Sample, mark: Marker) -> str:
    size = f"{sample.width}x{sample.height}" if sample.image else "no image"
    who = f'<div class="who">{html.escape(f"{sample.dataset} / {sample.task}, {size}, {sample.licence}")}</div>'
    image = _image(_drawn(sample), f"{sample.dataset} sample") if sample.image else ""
    messages = render(sample, random.Random(sample.id))
    pieces = ((html.escape(piece), supervised) for piece, supervised in mark(messages))
    text = "".join(f"<mark>{piece}</mark>" if supervised else piece for piece, supervised in pieces)
    return f'<figure>{image}<figcaption>{who}<div class="text">{text}</div></figcaption></figure>'


def _drawn(sample: Sample, side: int = 480) -> Image.Image:
    assert sample.image is not None
    image = Image.open(io.BytesIO(sample.image)).convert("RGB")
    scale = side / max(image.size)
    shown = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(shown)
    for number, box in enumerate(sample.boxes):
        pen.rectangle([value * scale for value in box], outline=COLOURS[number % len(COLOURS)], width=4)
    return shown
