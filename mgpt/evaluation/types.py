"""Types of evaluation: examples, metrics, scores and predictions. Imports neither torch nor ray nor mlflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mgpt.data.boxes import Box
from mgpt.data.tasks import Message
from mgpt.inference.types import GenerationOutput


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase of a reference and its true boxes in pixels."""

    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Example:
    """One question of an evaluation.

    Attributes:
        id: unique among all examples: task, the sample's id, and the number of the expression.
        key: the dataset's own id of the record, under which a prediction is reported.
        task: evaluation task, one of `mgpt.evaluation.metrics.TASKS`.
        image: encoded bytes.
        width: of the image, in pixels.
        height: of the image, in pixels.
        references: acceptable answers as model text.
        phrases: true boxes of referring and grounded examples.
        objects: names of the objects in the image, sorted, without repeats.
        choices: the record's answer choices, for datasets that are ranked.
        slices: pairs such as ("objects", "3").
    """

    id: str
    key: str
    task: str
    dataset: str
    image: bytes
    width: int
    height: int
    messages: tuple[Message, ...]
    references: tuple[str, ...]
    phrases: tuple[GroundedPhrase, ...] = ()
    objects: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    slices: tuple[tuple[str, str], ...] = ()

    @property
    def question(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Metric:
    """A metric of one task, a ratio of sums over examples.

    Attributes:
        headline: shown in the tables; other metrics are in the metrics file only.
        has_chance: False where answers given without the image have no meaningful value.
        descriptive: neither direction is better (the length of texts).
    """

    name: str
    higher_is_better: bool = True
    headline: bool = False
    has_chance: bool = True
    descriptive: bool = False

    @property
    def worst(self) -> float:
        """Value used when the denominator is 0 (no object named at all): an empty answer never scores well."""
        return 0.0 if self.higher_is_better else 1.0


@dataclass(frozen=True)
class Contribution:
    """One example's share of a metric; `denominator` 0 leaves the example out of it."""

    numerator: float
    denominator: float = 1.0


@dataclass(frozen=True)
class ExampleScore:
    """Contributions of one answer by metric name; `parsed` is False when it lacks the form that its task requires."""

    contributions: dict[str, Contribution]
    parsed: bool = True


Scorer = Callable[[Example, str, bool], ExampleScore]  # example, text of the answer, whether the model ended it


@dataclass(frozen=True)
class MetricFamily:
    """The metrics of one task. `constants(examples)` proposes answers that need no image, for the chance level."""

    task: str
    metrics: tuple[Metric, ...]
    score: Scorer
    constants: Callable[[Sequence[Example]], list[str]] = field(default=lambda examples: [])


@dataclass(frozen=True)
class Score:
    """One metric of one checkpoint. Missing and unparsed answers count as wrong and stay in the denominator.

    Attributes:
        low: lower end of the 95 % bootstrap interval.
        high: upper end of the 95 % bootstrap interval.
        chance: see `mgpt.evaluation.scoring.chance_levels`.
        n: number of examples.
        missing: examples without an answer.
        unparsed: answers of the wrong form.
        slices: slice -> value of the slice -> value, low, high, n.
    """

    value: float
    low: float
    high: float
    chance: float | None
    n: int
    missing: int
    unparsed: int
    higher_is_better: bool
    headline: bool
    descriptive: bool = False
    slices: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """One checkpoint's answer to one example and its score; `answer` is None where none came back."""

    checkpoint: str
    example: Example
    answer: GenerationOutput | None
    score: ExampleScore


@dataclass(frozen=True)
class Evaluation:
    """Scores and predictions of one model.

    Attributes:
        scores: checkpoint -> metric -> score, checkpoints in the order of training.
        predictions: of all checkpoints, in the order of the examples.
    """

    model_name: str
    scores: dict[str, dict[str, Score]]
    predictions: list[Prediction]

    @property
    def missing(self) -> int:
        """Number of answers that never came back."""
        return sum(prediction.answer is None for prediction in self.predictions)
