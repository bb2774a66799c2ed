"""The golden cases: numbers recorded from the original code on tiny models, and how to read them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mgpt.model import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.model.convert import from_original

FOLDER = Path(__file__).parent.parent / "goldens"
SYSTEMS = {"v1": "minigpt4", "v2": "minigpt-v2"}


def sizes(version: str) -> dict[str, Any]:
    return json.loads((FOLDER / version / "config.json").read_text())


def files(version: str) -> dict[str, Any]:
    """The keyword arguments of `from_original` for a version's files."""
    folder = FOLDER / version
    qformer = folder / "blip2_qformer.pth" if version == "v1" else None
    return {
        "eva_vit": folder / "eva_vit.pth",
        "llm": folder / "llm",
        "released": folder / "released.pth",
        "qformer": qformer,
        "sizes": sizes(version),
    }


def fresh_model(version: str) -> MiniGPTForConditionalGeneration:
    return from_original(SYSTEMS[version], **files(version))


@cache
def model(version: str) -> MiniGPTForConditionalGeneration:
    """Shared and not to be changed."""
    return fresh_model(version)


@cache
def processor(version: str) -> MiniGPTProcessor:
    return MiniGPTProcessor.from_original(SYSTEMS[version], FOLDER / version / "llm", sizes(version))


def case(version: str, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = FOLDER / version
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]


def conversations(texts: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The messages of a training case, whichever of the original's three input forms it uses."""
    if "input.conv_q" in texts:
        pairs = zip(texts["input.conv_q"], texts["input.conv_a"], strict=True)
        return [talk(*(turn for pair in zip(q.split("!@#"), a.split("!@#"), strict=True) for turn in pair)) for q, a in pairs]
    answers = texts["input.answer"]
    questions = texts.get("input.instruction_input") or [drawn_prompt(texts)] * len(answers)
    return [talk(question, answer) for question, answer in zip(questions, answers, strict=True)]


def drawn_prompt(texts: dict[str, Any]) -> str:
    """The one prompt that the original drew for the batch (minigpt_base.py:234-235); its second segment was recorded."""
    second = texts["output.tokenizer_calls"][1][0]
    return next(prompt for prompt in texts["input.prompt_list"] if prompt.endswith(second))


def same_rows(
    ours: torch.Tensor, mask: torch.Tensor, theirs: torch.Tensor, their_mask: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Row by row the attended values of both: the original pads prompts and answers apart, so widths differ."""
    return [(a[m.bool()], b[n.bool()]) for a, m, b, n in zip(ours, mask, theirs, their_mask, strict=True)]
