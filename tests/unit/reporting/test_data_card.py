"""The data card's HTML; tests/browser opens it in a browser."""

from __future__ import annotations

import html
import io
import re
from collections import Counter

import numpy as np
from PIL import Image

from mgpt.curation.dataset_stats import DatasetStats, plain_marks
from mgpt.curation.types import ImagePair
from mgpt.data.types import Sample, SampleImage, Turn
from mgpt.reporting.data_card import card_html

HOSTILE = "a roof <script>alert(1)</script>"
REPORT = {
    "records": 1234,
    "kept": 1200,
    "quarantined": 34,
    "datasets": {"own": {"train": {"kept": 1200, "quarantined": 34, "reasons": {"missing image": 34}}}},
    "reasons": {"missing image": 34},
    "repaired": {},
    "contamination": [{"training": "own", "evaluation": "held", "found_by": "file", "records": 2}],
}


def sample() -> Sample:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), "white").save(buffer, "PNG")
    return Sample.create(
        dataset="own",
        split="train",
        task="caption",
        images=(SampleImage(buffer.getvalue(), 40, 20),),
        turns=(Turn("user", ""), Turn("assistant", HOSTILE)),
        boxes=((1.0, 1.0, 10.0, 10.0),),
        licence="CC BY 4.0",
        source="own:1",
    )


def page(**facts: object) -> str:
    pixels = np.zeros((32, 32, 3), np.uint8)
    return card_html(
        REPORT, DatasetStats(shards=3, shards_read=2, **facts), [ImagePair(pixels, pixels, 3.0, "near")], plain_marks
    )


def test_text_of_samples_is_escaped_and_marked() -> None:
    text = page(samples=[sample()])
    assert "<script>" not in text
    assert any(HOSTILE in html.unescape(marked) for marked in re.findall(r"<mark>(.*?)</mark>", text, re.DOTALL))


def test_tables_hold_counts_and_reasons() -> None:
    text = page(tasks=Counter(caption=1200))
    for cell in ("<td class=n>1,200</td>", "<td>missing image 34</td>", "<td>held</td>"):
        assert cell in text


def test_images_are_embedded() -> None:
    sources = re.findall(r'src="(.*?)"', page(samples=[sample()]))
    assert len(sources) == 3
    assert all(source.startswith("data:image/") for source in sources)


def test_histogram_counts_every_value() -> None:
    counts = re.findall(r"<title>.*?: (\d+)</title>", page(lengths=[1, 2, 2, 50], boxes_each=[]))
    assert sum(map(int, counts)) == 4
