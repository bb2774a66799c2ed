"""`mgpt chat` and `mgpt predict`: use a model on one image, or on a file of questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgpt.cli.console import progress, status
from mgpt.cli.project import project_store, tracking_errors, tracking_uri

if TYPE_CHECKING:
    from mgpt.storage import Store
    from mgpt.storage.types import WeightsReference

Model = Annotated[str, typer.Option(help="A registered model, or a folder of trained weights.")]
PREFIX = "models:/"  # of the reference to a registered version
DEFAULT_MODEL = "models:/minigpt-v2@champion"


def chat(
    image: Annotated[Path, typer.Option()],
    prompt: Annotated[str, typer.Option(help="For instance: [refer] the red circle")],
    out: Annotated[
        Path | None, typer.Option(help="The image with the boxes; IMAGE-answer.png next to the image by default.")
    ] = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Ask a model about an image; writes the image with the boxes of the answer."""
    from mgpt.serving.chat import chat as generate

    with status(f"loading {model}"):
        reply, drawn = generate(image, prompt, _weights(model), _store(model), out)
    print(reply.text)
    if drawn is not None:
        print(f"boxes drawn into {drawn}")


def predict(
    questions: Annotated[Path, typer.Argument(help="JSONL file with an image and a prompt in each line.")],
    answers: Annotated[Path, typer.Argument(help="The JSONL file to write.")],
    model: Model = DEFAULT_MODEL,
) -> None:
    """Answer every line of a JSONL file."""
    from mgpt.serving.chat import predict as generate

    with progress("predicting", "answers") as report:
        count = generate(questions, answers, _weights(model), _store(model), report=report)
    print(f"{count} answers in {answers}")


def _weights(model: str) -> WeightsReference | Path:
    """Returns a registered model's weights by reference, or the folder that `model` names, which needs no project."""
    if not model.startswith(PREFIX):
        return Path(model)
    from mgpt.registry.versions import find

    with tracking_errors():
        return find(tracking_uri(), model).weights


def _store(model: str) -> Store | None:
    return project_store() if model.startswith(PREFIX) else None
