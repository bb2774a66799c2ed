"""The frozen part of a model alone: what a feature cache is computed with, without the language model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from mgpt.models import backbones
from mgpt.models.configuration_minigpt import MiniGPTConfig
from mgpt.models.vision import encode_frozen, fix_norm, resize_tower


@dataclass(frozen=True)
class EncoderSpec:
    """Which frozen part: base folders, pixels a side, their mean and deviation, the merge (1 with a Q-Former, which has none), what one
    image becomes (tokens, width), and the type that the backbones are held in."""

    vision: str
    qformer: str | None
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    merge: int
    tokens: int
    width: int
    held: str

    @classmethod
    def of(cls, config: MiniGPTConfig, folders: dict[str, Path], held: str) -> EncoderSpec:
        """The frozen part of a model with this configuration, on these base folders, held in `held` (a key of `backbones.PRECISIONS`)."""
        qformer = folders.get("qformer")
        return cls(
            vision=str(folders["vision"]),
            qformer=None if qformer is None else str(qformer),
            image_size=config.image_size,
            image_mean=tuple(config.image_mean),
            image_std=tuple(config.image_std),
            merge=config.merge if qformer is None else 1,
            tokens=config.num_image_tokens,
            width=config.projection_inputs,
            held=held,
        )

    def key(self, precision: str, dtype: str) -> str:
        """Names everything that its features depend on: backbones by hash, image size and preprocessing, merge, arithmetic and stored type.

        Reads the backbones' weights, for their hashes.
        """
        content = {
            "backbones": [
                backbones.backbone_hash(folder) for folder in (self.vision, self.qformer) if folder is not None
            ],
            "pixels": [self.image_size, self.image_mean, self.image_std, "bicubic"],
            "merge": self.merge,
            "types": [self.held, precision, dtype],
            "arithmetic": 2,  # since 2 a part that is held in half precision runs outside autocast
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


class ImageEncoder:
    """The loaded frozen part, on a GPU where there is one. Gives the bits of `MiniGPTForConditionalGeneration.encode_images`."""

    def __init__(self, spec: EncoderSpec, precision: str = "fp32") -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision, self.merge = precision, spec.merge
        self.tower: Any = backbones.load_vision(spec.vision, backbones.PRECISIONS[spec.held])
        resize_tower(self.tower, spec.image_size)
        fix_norm(self.tower)
        self.patches = spec.tokens * spec.merge
        self.qformer: Any = None
        self.queries: torch.Tensor | None = None
        if spec.qformer is not None:
            qformer, queries = backbones.load_qformer(spec.qformer, backbones.PRECISIONS[spec.held])
            self.qformer = cast(Any, qformer).to(self.device).eval()
            self.queries = queries.to(self.device)
        cast(Any, self.tower).to(self.device).eval()

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, 3, side, side) → (images, tokens, width), on the CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = encode_frozen(
                self.tower, pixel_values.to(self.device), self.patches, self.merge, self.qformer, self.queries
            )
        return found.cpu()
