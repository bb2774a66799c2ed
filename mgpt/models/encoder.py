"""The frozen image encoder of a model without its language model, as feature caches are computed with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgpt.models import backbones
from mgpt.models.configuration_minigpt import MiniGPTConfig
from mgpt.models.vision import encode_frozen, resize_vision_tower, set_ln_vision_eps


@dataclass(frozen=True)
class EncoderSpec:
    """A frozen image encoder.

    Attributes:
        vision, qformer: backbone folders.
        image_size: pixels.
        image_mean, image_std: of the tower's pixels.
        merge: consecutive vision tokens in one image token; 1 with a Q-Former, which has no merge.
        tokens, width: shape of one image's features.
        backbone_precision: type that the backbones are held in, a key of `backbones.PRECISIONS`.
    """

    vision: str
    qformer: str | None
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    merge: int
    tokens: int
    width: int
    backbone_precision: str

    @classmethod
    def from_config(
        cls, config: MiniGPTConfig, folders: Mapping[str, str | Path], backbone_precision: str
    ) -> EncoderSpec:
        """Returns the encoder of a model with this configuration, on these backbone folders."""
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
            backbone_precision=backbone_precision,
        )

    def key(self, precision: str, dtype: str) -> str:
        """Returns a digest of all that the features depend on: backbones, preprocessing, merge, precision, stored type.

        Reads the backbones' weights, for their hashes.
        """
        content = {
            "backbones": [
                backbones.backbone_hash(folder) for folder in (self.vision, self.qformer) if folder is not None
            ],
            "pixels": [self.image_size, self.image_mean, self.image_std, "bicubic"],
            "merge": self.merge,
            "types": [self.backbone_precision, precision, dtype],
            "arithmetic": 2,  # version of the computation: since 2, parts in half precision run outside autocast
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


class ImageEncoder:
    """The loaded encoder, on a GPU where there is one; bit-identical to the model's `encode_images`."""

    def __init__(self, spec: EncoderSpec, precision: str = "fp32") -> None:
        dtype = backbones.PRECISIONS[spec.backbone_precision]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision, self.merge, self.patches = precision, spec.merge, spec.tokens * spec.merge
        self.tower: Any = backbones.load_vision(spec.vision, dtype)
        resize_vision_tower(self.tower, spec.image_size)
        set_ln_vision_eps(self.tower)
        self.tower.eval().to(device=self.device)
        self.qformer: Any = None
        self.queries: torch.Tensor | None = None
        if spec.qformer is not None:
            self.qformer, queries = backbones.load_qformer(spec.qformer, dtype)
            self.qformer.to(self.device).eval()
            self.queries = queries.to(self.device)

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes (images, 3, side, side) to (images, tokens, width), on the CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = encode_frozen(
                self.tower, pixel_values.to(self.device), self.patches, self.merge, self.qformer, self.queries
            )
        return features.cpu()
