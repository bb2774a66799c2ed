"""What is asked of which checkpoints, and who answers. Imports none of the model's code, as `mgpt.inference.types`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mgpt.config.evaluation import GenerationSettings
from mgpt.data.tasks import Message

UNTRAINED = "untrained"
TRAINABLE_FILE = "trainable.safetensors"  # Contract: mgpt.models.assembly


@dataclass(frozen=True)
class Request:
    """`images`: encoded bytes or Pillow images, one for each `<ImageHere>` of the messages. `messages`: a conversation that ends with a
    user message.
    """

    images: tuple[bytes | Image.Image, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Answer:
    """`text` without the end symbol. `finished`: whether the model ended it, rather than the token limit. `tokens`: new tokens, the end
    symbol included.
    """

    text: str
    finished: bool
    tokens: int = 0


@dataclass(frozen=True)
class Ask:
    """A request for each of the named checkpoints. With `choices` the answer is the one of them that the model finds most likely. An
    answer of at most `continue_below` new tokens is followed by a "Continue" turn, whose answer is joined to it.
    """

    request: Request
    checkpoints: tuple[str, ...]
    max_new_tokens: int
    continue_below: int = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSource:
    """Everything that a process anywhere needs to load the checkpoints of one model.

    `backbones`: name -> folder or URI. `weights`: checkpoint -> its files by name, as bytes (trainables are small). The checkpoint `untrained`
    needs no files: it is a fresh projection (and LoRA), drawn with `seed`, in the shape of the last checkpoint.
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
        """Read the folders that `save_trainable` wrote. Raises ValueError when one is missing or there is none."""
        missing = [
            f"{name} ({folder})"
            for name, folder in checkpoints.items()
            if not (Path(folder) / TRAINABLE_FILE).is_file()
        ]
        if missing or not checkpoints:
            raise ValueError(
                f"checkpoints: no trained weights in {', '.join(missing) or 'the request'}; run the training stage that writes them"
            )
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


AnswerAll = Callable[[ModelSource, Sequence[Ask]], list[dict[str, Answer]]]
