"""Tiny bases with random weights, written as real base folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from mgpt.model import MiniGPTForConditionalGeneration
from mgpt.model.bases import save_base
from mgpt.model.tokenizer import build_tokenizer
from tests.model import golden_cases as golden

LORA = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.05}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """All weights and norms random, so that no part can be left out without a trace."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def write_bases(folder: Path, seed: int = 0) -> dict[str, Path]:
    """vision, qformer and language folders under `folder`."""
    vision = Blip2VisionModel(
        Blip2VisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    )
    bridge = Blip2QFormerModel(
        Blip2QFormerConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, encoder_hidden_size=32)
    )
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=256
    )
    save_base(folder / "vision", randomise(vision, seed))
    save_base(
        folder / "qformer", randomise(bridge, seed + 1), query_tokens=torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(seed))
    )
    save_base(folder / "language", randomise(LlamaForCausalLM(config), seed + 2), tokenizer=tokenizer())
    return {name: folder / name for name in ("vision", "qformer", "language")}


def tokenizer():
    return build_tokenizer(golden.FOLDER / "v1" / "llm")


def v1(bases: dict[str, Path]) -> MiniGPTForConditionalGeneration:
    return MiniGPTForConditionalGeneration.from_bases(**bases)


def v2(bases: dict[str, Path], **options) -> MiniGPTForConditionalGeneration:
    """With a LoRA whose B is not zero, so that it matters."""
    model = MiniGPTForConditionalGeneration.from_bases(bases["vision"], bases["language"], merge=4, lora=LORA, **options)
    for name, parameter in model.trainable_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(5))
    return model


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
