"""Referring expression comprehension: the share of expressions whose predicted box overlaps the true one by more than half.

Reported (`refer_accuracy`): plain intersection over union on continuous pixels, strictly above 0.5, of the first complete box anywhere in
the answer. Beside it stands `refer_accuracy_original`, the rule of the original code (eval_scripts/eval_ref.py, common/eval_utils.py): the
answer, without spaces and `<unk>`, must begin with the box and hold exactly four numbers, and the overlap counts both end pixels (+1). The
plain rule is the stricter one on small images; on photographs the two differ by a few tenths.

Items are keyed by the expression's own sample, never by the image: with the image as key a perfect model scores 40.5 % on RefCOCO val,
since expressions overwrite each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mgpt.data.boxes import GRID, Box, iou, parse_boxes
from mgpt.evaluation.examples import Item
from mgpt.evaluation.scoring import Family, Judgement, Metric, Part

THRESHOLD = 0.5
ORIGINAL_BOX = re.compile(r"\{<\d{1,3}><\d{1,3}><\d{1,3}><\d{1,3}>\}")


def original_box(text: str, width: int, height: int) -> Box | None:
    """The box that the original scorer would use, in pixels, or None where it counts the answer as wrong."""
    cleaned = text.replace("<unk>", "").replace(" ", "").strip()
    numbers = [int(number) for number in re.findall(r"\d+", cleaned)]
    if not ORIGINAL_BOX.match(cleaned) or len(numbers) != 4:
        return None
    return Box(*(number / GRID * side for number, side in zip(numbers, (width, height, width, height), strict=True)))


def inclusive_iou(first: Box, second: Box) -> float:
    """Intersection over union where both end pixels count (+1), as the original code computes it (common/eval_utils.py:64-76)."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1) + 1
    height = min(first.y2, second.y2) - max(first.y1, second.y1) + 1
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box.x2 - box.x1 + 1) * (box.y2 - box.y1 + 1) for box in (first, second)) - shared
    return shared / union if union > 0 else 0.0


def judge(item: Item, text: str, finished: bool) -> Judgement:
    """`item.phrases[0].boxes[0]` is the truth."""
    truth = item.phrases[0].boxes[0]
    found = parse_boxes(text, item.width, item.height)
    overlap = iou(found[0], truth) if found else 0.0
    original = original_box(text, item.width, item.height)
    original_overlap = inclusive_iou(original, truth) if original else 0.0
    parts = {
        "refer_accuracy": Part(float(overlap > THRESHOLD)),
        "refer_accuracy_original": Part(float(original_overlap > THRESHOLD)),
        "refer_mean_overlap": Part(overlap),
    }
    return Judgement(parts, parsed=bool(found))


def constants(items: Sequence[Item]) -> list[str]:
    """Every true box of the items, as the one answer for all."""
    return sorted({reference for item in items for reference in item.references})


FAMILY = Family(
    "refer",
    (Metric("refer_accuracy", headline=True), Metric("refer_accuracy_original"), Metric("refer_mean_overlap")),
    judge,
    constants,
)
