"""Types of captioning. Imports neither torch nor ray nor mlflow."""

from __future__ import annotations

from dataclasses import dataclass

from mgpt.data.types import Sample
from mgpt.inference.types import GenerationOutput


@dataclass(frozen=True)
class RepairedText:
    """A text after repair.

    Attributes:
        steps: names of the steps that changed it, in order.
        reject_reason: why the endpoint rejected the text, empty where it did not.
    """

    text: str
    steps: tuple[str, ...] = ()
    reject_reason: str = ""


@dataclass(frozen=True)
class Description:
    """The description of one image.

    Attributes:
        answer: the generated text.
        change: share of its words that repair removed or replaced, 0..1.
        reject_reason: why it is dropped, empty where it is kept.
        decision: the reviewer's, `accept` or `reject`; empty where there is none.
        stale: the reviewer decided on another generated text, so that the decision does not count.
    """

    sample: Sample
    answer: GenerationOutput
    repaired: RepairedText
    change: float
    reject_reason: str
    decision: str = ""
    stale: bool = False

    @property
    def kept(self) -> bool:
        """True where the description becomes instruction data."""
        return not self.reject_reason
