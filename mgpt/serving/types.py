"""Types of the serving package."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class LabelledBox:
    """A box in pixels of the image as it was given (left, top, right, bottom), with the phrase it belongs to."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Reply:
    """`text` is the model's answer with its markup, `plain` without; `finished` is False where the token limit cut it
    off."""

    text: str
    plain: str
    boxes: tuple[LabelledBox, ...]
    finished: bool

    def as_dict(self) -> dict[str, object]:
        """Returns the reply as a JSON-serialisable dict."""
        return {**asdict(self), "boxes": [asdict(box) for box in self.boxes]}
