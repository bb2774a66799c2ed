"""Settings of the `models` section: of which bases each system is made, and what is trained on them."""
from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mgpt.settings.fields import Section


class LoraSettings(Section):
    """Low-rank updates of the language model's weights."""

    rank: Annotated[int, Field(ge=1)] = 64
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")


class ModelSettings(Section):
    """One system: names of downloaded bases, how many neighbouring image tokens become one, and LoRA where the language model is tuned."""

    vision: str
    language: str
    qformer: str | None = None
    merge: Annotated[int, Field(ge=1)] = 1
    lora: LoraSettings | None = None
    seed: Annotated[int, Field(ge=0)] = 0
