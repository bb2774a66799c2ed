"""`mgpt convert`: original files to our folders, and back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mgpt.models.presets import ARCHITECTURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the `convert` subcommand its three forms; `run` answers them."""
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    original = forms.add_parser("original", help="join the original files into one Hugging Face folder")
    backbones = forms.add_parser("backbones", help="the original vision side as frozen base folders, to train from")
    for form in (original, backbones):
        form.add_argument("model_name", choices=ARCHITECTURES)
        form.add_argument("--eva-vit", type=Path, required=True, help="eva_vit_g.pth")
        form.add_argument("--qformer", type=Path, help="blip2_pretrained_flant5xxl.pth, for minigpt4")
        form.add_argument("--sizes", type=Path, help="JSON of non-standard sizes")
        form.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    original.add_argument("--llm", type=Path, required=True, help="the language model's Hugging Face folder")
    original.add_argument("--released", type=Path, required=True, help="the released .pth")
    back = forms.add_parser("to-original", help="write a .pth that the original code loads")
    back.add_argument("folder", type=Path, help="a whole folder, or one of trained weights")
    back.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="for a folder of trained weights: its backbones",
    )
    back.add_argument("--out", type=Path, required=True)


def run(asked: argparse.Namespace) -> None:
    """Convert as asked and say where the result is; ValueError as the called functions raise."""
    from mgpt.conversion import convert

    if asked.form == "to-original":
        state = convert.to_original(_load(asked.folder, asked.base), asked.out)
        print(f"{asked.out}: {len(state)} tensors")
        return
    sizes = _sizes(asked.sizes)
    if asked.form == "backbones":
        hashes = convert.convert_backbones(asked.model_name, asked.eva_vit, asked.out, asked.qformer, sizes)
        print("\n".join(f"{asked.out / name}: sha256 {sha256}" for name, sha256 in hashes.items()))
        return
    out = convert.convert_original(
        asked.model_name, asked.eva_vit, asked.llm, asked.released, asked.out, asked.qformer, sizes
    )
    print(f"{out}: {asked.model_name}, ready for MiniGPTForConditionalGeneration.from_pretrained")


def _load(folder: Path, backbones: list[str]) -> Any:
    from mgpt.models import MiniGPTForConditionalGeneration

    if not backbones:
        return MiniGPTForConditionalGeneration.from_pretrained(folder)
    wrong = [pair for pair in backbones if "=" not in pair]
    if wrong:
        raise ValueError(f"--base: {', '.join(wrong)} has no '='; write vision=FOLDER")
    return MiniGPTForConditionalGeneration.from_trainable(folder, dict(pair.split("=", 1) for pair in backbones))


def _sizes(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--sizes: {path} cannot be read as JSON ({error})") from error
