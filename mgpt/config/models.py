"""Settings of the `models` section: of which backbones each model is made, and what is trained on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mgpt.config.base import Section


class LoraSettings(Section):
    """Low-rank adapters on the language model; the names are peft's."""

    r: int = Field(default=64, ge=1)
    lora_alpha: int = Field(default=16, gt=0)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)


class ModelSettings(Section):
    """One model: names of downloaded backbones, how image tokens come about, and LoRA where the language model is tuned."""

    vision: str
    language: str
    qformer: str | None = None
    preset: str | None = Field(
        default=None,
        description="published model, a key of mgpt.models.presets.PUBLISHED, to plan with where the backbones are not at hand",
    )
    merge: int = Field(
        default=4,
        ge=1,
        description="consecutive image tokens that become one; without effect where there is a Q-Former",
    )
    image_size: int | None = Field(default=None, gt=0, description="pixels; null for the tower's own size")
    lora: LoraSettings | None = None
    seed: int = Field(default=0, ge=0, description="of the fresh projection and LoRA")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of the frozen backbones; trained weights stay fp32"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None, description="of the language model; needs bitsandbytes and a GPU"
    )
    attn_implementation: str | None = Field(
        default=None, description="transformers' name, e.g. sdpa or flash_attention_2; null for its choice"
    )
    checkpoint_vision: bool = Field(
        default=False, description="recompute the tower's activations; a frozen tower keeps none anyway"
    )
    checkpoint_language: bool = Field(
        default=False, description="recompute the language model's activations in the backward pass"
    )

    @property
    def backbones(self) -> dict[str, str | None]:
        """`SOURCE/FOLDER` of each base by part; None for a part that the model lacks."""
        return {"vision": self.vision, "language": self.language, "qformer": self.qformer}
