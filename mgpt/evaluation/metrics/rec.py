"""Referring expression comprehension: IoU of the predicted and the true box.

- `rec_accuracy`, the reported one: share of expressions where the IoU on continuous pixels of the first complete box
  anywhere in the answer is strictly above 0.5;
- `rec_accuracy_original`: the rule of the original code (eval_scripts/eval_ref.py, common/eval_utils.py). The answer,
  without spaces and `<unk>`, must begin with the box and hold exactly four numbers, and both end pixels count (+1);
- `rec_mean_iou`: mean IoU of the first complete box, 0 where there is none.

The reported rule is stricter on small images; on photographs the two differ by a few tenths of a percentage point.

Examples are keyed by the expression's own sample, never by the image: with the image as key, expressions overwrite each
other, and a perfect model scores 40.5 % on RefCOCO val.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mgpt.data.boxes import GRID, Box, iou, parse_boxes
from mgpt.evaluation.metrics import METRICS
from mgpt.evaluation.types import Contribution, Example, ExampleScore, MetricFamily

IOU_THRESHOLD = 0.5
ORIGINAL_BOX = re.compile(r"\{<\d{1,3}><\d{1,3}><\d{1,3}><\d{1,3}>\}")


def original_box(text: str, width: int, height: int) -> Box | None:
    """Returns the box that the original scorer reads, in pixels, or None where it counts the answer as wrong."""
    cleaned = text.replace("<unk>", "").replace(" ", "").strip()
    numbers = [int(number) for number in re.findall(r"\d+", cleaned)]
    if not ORIGINAL_BOX.match(cleaned) or len(numbers) != 4:
        return None
    return Box(*(number / GRID * side for number, side in zip(numbers, (width, height, width, height), strict=True)))


def inclusive_iou(first: Box, second: Box) -> float:
    """Computes IoU with both end pixels counted (+1), as the original code does (common/eval_utils.py:64-76)."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1) + 1
    height = min(first.y2, second.y2) - max(first.y1, second.y1) + 1
    intersection = max(0.0, width) * max(0.0, height)
    union = sum((box.x2 - box.x1 + 1) * (box.y2 - box.y1 + 1) for box in (first, second)) - intersection
    return intersection / union if union > 0 else 0.0


def score(example: Example, text: str, finished: bool) -> ExampleScore:
    """Scores one answer against `example.phrases[0].boxes[0]`."""
    truth = example.phrases[0].boxes[0]
    boxes = parse_boxes(text, example.width, example.height)
    overlap = iou(boxes[0], truth) if boxes else 0.0
    original = original_box(text, example.width, example.height)
    original_overlap = inclusive_iou(original, truth) if original else 0.0
    contributions = {
        "rec_accuracy": Contribution(float(overlap > IOU_THRESHOLD)),
        "rec_accuracy_original": Contribution(float(original_overlap > IOU_THRESHOLD)),
        "rec_mean_iou": Contribution(overlap),
    }
    return ExampleScore(contributions, parsed=bool(boxes))


def constants(examples: Sequence[Example]) -> list[str]:
    """Returns every true box of the examples, as text."""
    return sorted({reference for example in examples for reference in example.references})


FAMILY = MetricFamily("rec", METRICS["rec"], score, constants)
