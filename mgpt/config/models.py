"""Settings of the `models` section: the backbones of each model, and its trained parts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mgpt.config.base import Section


class LoraSettings(Section):
    """Low-rank adapters on the language model, with peft's names."""

    r: int = Field(default=64, ge=1)
    lora_alpha: int = Field(default=16, gt=0)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)


class ModelSettings(Section):
    """One model: its backbones (SOURCE/FOLDER of the downloaded files), its image tokens, and LoRA if it is tuned."""

    vision: str
    language: str
    qformer: str | None = None
    preset: str | None = Field(
        default=None,
        description="published model, a key of mgpt.models.presets.PUBLISHED, for plans made without the backbones",
    )
    merge: int = Field(
        default=4,
        ge=1,
        description="consecutive image tokens that are concatenated into one; ignored with a Q-Former",
    )
    image_size: int | None = Field(default=None, gt=0, description="pixels; null for the tower's own size")
    lora: LoraSettings | None = None
    seed: int = Field(default=0, ge=0, description="of the initial projection and LoRA weights")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the frozen backbones; trained weights stay fp32"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None, description="of the language model; needs bitsandbytes and a GPU"
    )
    attn_implementation: str | None = Field(
        default=None, description="transformers' name, for instance sdpa or flash_attention_2; null for its default"
    )
    checkpoint_vision: bool = Field(
        default=False, description="recompute the vision tower's activations; a frozen tower keeps none"
    )
    checkpoint_language: bool = Field(
        default=False, description="recompute the language model's activations in the backward pass"
    )

    @property
    def backbones(self) -> dict[str, str | None]:
        """`SOURCE/FOLDER` of each backbone; None for one that the model lacks."""
        return {"vision": self.vision, "language": self.language, "qformer": self.qformer}
