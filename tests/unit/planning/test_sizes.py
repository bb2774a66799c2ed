"""Parameter counts compared with models that transformers builds on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt.config.models import LoraSettings
from mgpt.models import MiniGPTConfig, MiniGPTForConditionalGeneration
from mgpt.models.presets import PUBLISHED, preset, preset_parts
from mgpt.planning.sizes import configs_from_folders, sizes_from_configs

SHAPES = Path(__file__).parents[3] / "mgpt" / "models" / "shapes"


def built(config: MiniGPTConfig) -> MiniGPTForConditionalGeneration:
    with torch.device("meta"):
        return MiniGPTForConditionalGeneration(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name: str) -> None:
    parts, model = preset_parts(name), built(preset(name))
    lora = LoraSettings(**parts["lora"]) if parts["lora"] else None
    sizes = sizes_from_configs(parts, parts["merge"], lora)
    assert (sizes.trainable, sizes.frozen + sizes.trainable) == (
        model.freeze_report().trainable,
        model.freeze_report().total,
    )
    assert sizes.image_tokens == model.config.num_image_tokens
    assert sizes.feature_width == model.config.projection_inputs


@pytest.mark.parametrize("qformer", [True, False])
def test_parameters_of_shipped_backbones(qformer: bool) -> None:
    parts = configs_from_folders(SHAPES / "vision", SHAPES / "language", SHAPES / "qformer" if qformer else None)
    lora = LoraSettings(r=8, target_modules=("q_proj", "down_proj"))
    config = MiniGPTConfig(
        parts["vision_config"],
        parts["text_config"],
        parts.get("qformer_config"),
        num_query_tokens=parts.get("num_query_tokens", 32),
        lora=lora,
    )
    sizes, report = sizes_from_configs(parts, 4, lora), built(config).freeze_report()
    assert (sizes.trainable, sizes.frozen + sizes.trainable) == (report.trainable, report.total)
    assert sizes.image_tokens == 16


def test_unknown_architecture_suggests_preset() -> None:
    parts = preset_parts("minigpt-v2") | {"text_config": {"model_type": "gpt2"}}
    with pytest.raises(ValueError, match=r"gpt2.*preset"):
        sizes_from_configs(parts, 4, None)
