"""`mgpt chat` and `mgpt predict`: use a model on one image, or on a file of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgpt.cli.console import progress, status
from mgpt.cli.project import tracking_uri

Model = Annotated[str, typer.Option(help="A registered model, or a folder of trained weights.")]
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
        reply, drawn = generate(image, prompt, _tracking_uri(model), model, out)
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
        count = generate(questions, answers, _tracking_uri(model), model, report=report)
    print(f"{count} answers in {answers}")


def _tracking_uri(model: str) -> str:
    """Returns the registry's address; a folder of weights needs none, and no project."""
    return tracking_uri() if model.startswith("models:/") else ""
