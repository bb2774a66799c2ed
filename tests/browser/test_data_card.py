"""The data card in a real browser, on a wide and a narrow screen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mgpt.storage import Store
from tests.fixtures.browser import Browser
from tests.fixtures.worlds import card as card_of
from tests.fixtures.worlds import encoded, own_source, run, write_own

HOSTILE = 'a roof <script>document.title = "taken over"</script><img src="http://127.0.0.1:9/x.png">'
TEXTS = "Array.from(document.querySelectorAll('figcaption .text')).map(one => one.textContent)"
IMAGES = (
    "Array.from(document.images)"
    ".map(one => one.complete ? [one.naturalWidth, one.naturalHeight, one.alt.length > 0] : null)"
)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
MARKED = "Array.from(document.querySelectorAll('mark')).slice(1).map(one => one.textContent.trim())"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of two photographs; one caption contains HTML, and one record is rejected."""
    folder = tmp_path_factory.mktemp("card")
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    records: list[dict[str, object]] = [
        {"image": "china.jpg", "caption": HOSTILE},
        {"image": "flower.jpg", "question": "Which colour?", "answer": "orange"},
        {"image": "china.jpg", "expression": "the roof", "box": [100, 50, 400, 200]},
        {"image": "gone.jpg", "caption": "an image that is not there"},
    ]
    write_own(
        folder / "own", records, {"china.jpg": encoded(china, quality=90), "flower.jpg": encoded(flower, quality=90)}
    )
    (folder / "out").mkdir()
    found = run({"own": own_source(folder / "own", text="none")}, Store(str(folder / "store")))
    found.save(Path(folder / "out"))
    (folder / "out" / "card.html").write_text(card_of(found), encoding="utf-8")
    return (folder / "out" / "card.html").as_uri()


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)])
def test_card_shows_images_and_texts_and_loads_nothing_else(
    browser: Browser, card: str, width: int, height: int
) -> None:
    page = browser.open(card, IMAGES, TEXTS, MARKED, OVERFLOW, "document.title", width=width, height=height)
    images, texts, marked, overflow, title = page.values
    assert images == [[480, 320, True]] * 3
    assert sum(HOSTILE in text for text in texts) == 1
    assert {HOSTILE, "orange"} <= set(marked)
    assert (title, overflow) == ("Data card", 0)
    assert page.requested == [card]
    assert page.errors == []


def test_box_is_drawn_in_place(browser: Browser, card: str) -> None:
    figures = "Array.from(document.querySelectorAll('figure'))"
    with_box = f"{figures}.find(one => one.innerText.includes('refer')).querySelector('img')"
    page = browser.open(
        card, f"(({{x, y, width}}) => [x + scrollX, y + scrollY, width])({with_box}.getBoundingClientRect())"
    )
    left, top, width = page.values[0]
    image, scale = Image.open(io.BytesIO(page.screenshot)).convert("RGB"), width / 640
    middle = round(top + 125 * scale)  # half-way down the box from (100, 50) to (400, 200)
    reds = [x for x in range(round(left), round(left + width)) if _is_red(*image.getpixel((x, middle)))]
    edges = [(x - left) / scale for x in reds]
    assert {"left" if abs(edge - 100) < 15 else "right" if abs(edge - 400) < 15 else edge for edge in edges} == {
        "left",
        "right",
    }


def _is_red(red: int, green: int, blue: int) -> bool:
    """True for about the colour of an image's first box, #d62728."""
    return red > 170 and green < 90 and blue < 90


def test_rejected_records_are_listed_with_reason(browser: Browser, card: str) -> None:
    (tables,) = browser.open(
        card, "Array.from(document.querySelectorAll('tr')).map(one => one.innerText.split(/\\s*\\t\\s*/))"
    ).values
    assert ["own", "train", "3", "1", "missing image 1"] in tables
