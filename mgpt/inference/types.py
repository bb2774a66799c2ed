"""Requests, outputs and the source of a model; imports none of the model's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mgpt.config.evaluation import GenerationSettings
from mgpt.data.tasks import Message

UNTRAINED = "untrained"
TRAINABLE_FILE = "trainable.safetensors"  # as in mgpt.models.weights, which imports torch


@dataclass(frozen=True)
class GenerationRequest:
    """A conversation to continue.

    Attributes:
        images: encoded bytes or Pillow images, one for each `<ImageHere>` of the messages.
        messages: the conversation, which ends with a user message.
    """

    images: tuple[bytes | Image.Image, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class GenerationOutput:
    """A generated answer.

    Attributes:
        text: without the end symbol.
        finished: False if the token limit ended it.
        tokens: number of new tokens, the end symbol included.
    """

    text: str
    finished: bool
    tokens: int = 0


@dataclass(frozen=True)
class CheckpointRequest:
    """A generation request for each of the named checkpoints.

    Attributes:
        continue_below: an answer of at most this many new tokens is followed by a "Continue" turn, and both are joined.
        choices: if not empty, the output is the choice with the highest likelihood.
    """

    request: GenerationRequest
    checkpoints: tuple[str, ...]
    max_new_tokens: int
    continue_below: int = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSource:
    """The checkpoints of one model, as something that can be sent to another process.

    Attributes:
        backbones: folder or URI by name.
        weights: files of each checkpoint by name, as bytes. The checkpoint `untrained` has none: it is a newly
            initialised projection (and LoRA), drawn with `seed`, in the shape of the last checkpoint.
        format: prompt format.
    """

    backbones: Mapping[str, str]
    weights: Mapping[str, Mapping[str, bytes]]
    format: str
    batch_size: int
    precision: str = "fp32"
    seed: int = 0

    @classmethod
    def of(
        cls,
        backbones: Mapping[str, str | Path],
        checkpoints: Mapping[str, str | Path],
        format: str,
        generation: GenerationSettings,
        seed: int = 0,
    ) -> ModelSource:
        """Reads checkpoint folders of `save_trainable`. Raises ValueError when there is none, or one has no weights."""
        missing = [
            f"{name} ({folder})"
            for name, folder in checkpoints.items()
            if not (Path(folder) / TRAINABLE_FILE).is_file()
        ]
        if missing or not checkpoints:
            found = ", ".join(missing) or "the request"
            raise ValueError(f"checkpoints: no trained weights in {found}; run the training stage that writes them")
        weights = {
            name: {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}
            for name, folder in checkpoints.items()
        }
        return cls(
            {name: str(folder) for name, folder in backbones.items()},
            weights,
            format,
            generation.batch_size,
            generation.precision,
            seed,
        )


# Returns, for each request, the output of each of its checkpoints by name.
GenerationBackend = Callable[[ModelSource, Sequence[CheckpointRequest]], list[dict[str, GenerationOutput]]]
