"""`mgpt convert`: original files to folders of this project, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Convert the original files of both models into folders, and back.")

# mgpt.models.presets.ARCHITECTURES, whose import is slow
ModelName = Literal["minigpt4", "minigpt4-llama2", "minigpt-v2"]
Model = Annotated[ModelName, typer.Argument()]
EvaVit = Annotated[Path, typer.Option("--eva-vit", help="eva_vit_g.pth")]
Qformer = Annotated[Path | None, typer.Option(help="blip2_pretrained_flant5xxl.pth, for minigpt4")]
Sizes = Annotated[Path | None, typer.Option(help="JSON file of non-standard sizes")]
Folder = Annotated[Path, typer.Option(help="A folder that does not exist yet.")]


@app.command()
def original(
    model: Model,
    eva_vit: EvaVit,
    llm: Annotated[Path, typer.Option(help="Hugging Face folder of the language model")],
    released: Annotated[Path, typer.Option(help="the released .pth")],
    out: Folder,
    qformer: Qformer = None,
    sizes: Sizes = None,
) -> None:
    """Join the original files into one Hugging Face folder."""
    from mgpt.conversion import convert

    folder = convert.convert_original(model, eva_vit, llm, released, out, qformer, _sizes(sizes))
    print(f"{folder}: {model}, ready for MiniGPTForConditionalGeneration.from_pretrained")


@app.command()
def backbones(model: Model, eva_vit: EvaVit, out: Folder, qformer: Qformer = None, sizes: Sizes = None) -> None:
    """Convert the original vision side into frozen backbones, to train from."""
    from mgpt.conversion import convert

    hashes = convert.convert_backbones(model, eva_vit, out, qformer, _sizes(sizes))
    print("\n".join(f"{out / name}: sha256 {sha256}" for name, sha256 in hashes.items()))


@app.command()
def to_original(
    folder: Annotated[Path, typer.Argument(help="A whole model, or trained weights.")],
    out: Annotated[Path, typer.Option(help="The .pth to write.")],
    backbone: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="For trained weights: a backbone; repeatable.")
    ] = None,
) -> None:
    """Write a .pth that the original code loads."""
    from mgpt.conversion import convert

    state = convert.to_original(_load(folder, backbone or []), out)
    print(f"{out}: {len(state)} tensors")


def _load(folder: Path, backbones: list[str]) -> Any:
    from mgpt.models import MiniGPTForConditionalGeneration

    if not backbones:
        return MiniGPTForConditionalGeneration.from_pretrained(folder)
    wrong = [pair for pair in backbones if "=" not in pair]
    if wrong:
        raise ValueError(f"--backbone: {', '.join(wrong)} has no '='; write vision=FOLDER")
    return MiniGPTForConditionalGeneration.from_trainable(folder, dict(pair.split("=", 1) for pair in backbones))


def _sizes(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--sizes: {path} cannot be read as JSON ({error})") from error
    return found
