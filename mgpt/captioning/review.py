"""The file in which a person decides: one row a description, `decision` empty, `accept` or `reject`, and a text that may be corrected by
hand.
"""

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
    """`key`: the image's sample. `reason`: why the filters would drop it, empty where they would not. `digest`: of the generated text,
    so that a decision on another text is not taken for one on this."""

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
    """Short hash of a generated text."""
    return hashlib.sha256(original.encode()).hexdigest()[:16]


def write_review(rows: Iterable[ReviewRow]) -> bytes:
    """The CSV, rows in the given order."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(
            [
                row.key,
                row.decision,
                row.text,
                row.reason,
                f"{row.change:.3f}",
                row.steps,
                row.original,
                row.image,
                row.digest,
            ]
        )
    return buffer.getvalue().encode()


def read_review(path: str | Path) -> dict[str, ReviewRow]:
    """Rows by key.

    Raises ValueError, with the line, for a file that is no review: columns missing, a decision that is not known, a key twice, or no UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"describe.review: {path} is not UTF-8 ({error}); save it as UTF-8 CSV") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(
            f"describe.review: {path} lacks the columns {', '.join(missing)}; start from a copy of results/describe/review.csv"
        )
    rows: dict[str, ReviewRow] = {}
    for record in reader:
        row = _row(record, f"describe.review: {path} line {reader.line_num}")
        if row.key in rows:
            raise ValueError(
                f"describe.review: {path} line {reader.line_num}: the key {row.key} stands twice; keep one row a description"
            )
        rows[row.key] = row
    return rows


def _row(record: dict[str, str], where: str) -> ReviewRow:
    decision = (record["decision"] or "").strip().lower()
    if decision not in DECISIONS:
        raise ValueError(f"{where}: the decision '{record['decision']}' is not known; write accept, reject or nothing")
    if decision == "accept" and not (record["text"] or "").strip():
        raise ValueError(f"{where}: an accepted description has no text; write one, or reject the row")
    try:
        changed = float(record["change"] or 0)
    except ValueError as error:
        raise ValueError(
            f"{where}: the change '{record['change']}' is not a number; leave that column as it was"
        ) from error
    return ReviewRow(
        record["key"],
        decision,
        record["text"],
        record["reason"],
        changed,
        record["steps"],
        record["original"],
        record["image"],
        record["digest"],
    )
