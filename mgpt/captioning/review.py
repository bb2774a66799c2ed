"""The review file: one CSV row a description, where a person writes `accept` or `reject` and may correct the text."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("key", "decision", "text", "reason", "change", "steps", "original", "image", "digest")
DECISIONS = ("", "accept", "reject")


@dataclass(frozen=True)
class ReviewRow:
    """One row of the review file.

    Attributes:
        key: id of the image's sample.
        reason: reject reason of the filters, empty where they keep the description.
        change: share of its words that repair removed or replaced, 0..1.
        steps: repair steps that changed it, separated by spaces.
        original: the generated text.
        image: dataset and source of the image.
        digest: of `original`, so that a decision on another text is recognised.
    """

    key: str
    decision: str
    text: str
    reason: str
    change: float
    steps: str
    original: str
    image: str
    digest: str


def digest(original: str) -> str:
    """Returns a short hash of a generated text."""
    return hashlib.sha256(original.encode()).hexdigest()[:16]


def write_review(rows: Iterable[ReviewRow]) -> bytes:
    """Encodes rows as CSV, in the given order."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = {**vars(row), "change": f"{row.change:.3f}"}
        writer.writerow([values[column] for column in COLUMNS])
    return buffer.getvalue().encode()


def read_review(path: str | Path) -> dict[str, ReviewRow]:
    """Reads a review file as key -> row.

    Raises:
        ValueError: columns are missing, a decision is unknown, a key occurs twice, or the file is not UTF-8; names the
        line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"describe.review: {path} is not UTF-8 ({error}); save it as UTF-8 CSV") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(
            f"describe.review: {path} has no column {', '.join(missing)}; start from a copy of "
            f"results/describe/review.csv"
        )
    rows: dict[str, ReviewRow] = {}
    for record in reader:
        where = f"describe.review: {path} line {reader.line_num}"
        row = _row(record, where)
        if row.key in rows:
            raise ValueError(f"{where}: key {row.key} occurs twice; keep one row a description")
        rows[row.key] = row
    return rows


def _row(record: dict[str, str], where: str) -> ReviewRow:
    decision = (record["decision"] or "").strip().lower()
    if decision not in DECISIONS:
        raise ValueError(f"{where}: unknown decision '{record['decision']}'; write accept, reject or nothing")
    if decision == "accept" and not (record["text"] or "").strip():
        raise ValueError(f"{where}: an accepted description has no text; write one, or reject the row")
    try:
        change = float(record["change"] or 0)
    except ValueError as error:
        raise ValueError(
            f"{where}: change '{record['change']}' is not a number; leave that column as it was written"
        ) from error
    return ReviewRow(
        key=record["key"],
        decision=decision,
        text=record["text"],
        reason=record["reason"],
        change=change,
        steps=record["steps"],
        original=record["original"],
        image=record["image"],
        digest=record["digest"],
    )
