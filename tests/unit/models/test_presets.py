"""The published models at full size, without weights: names and shapes on the meta device."""

from __future__ import annotations

import json

import pytest
import torch

from mgpt.conversion.convert import to_original
from mgpt.conversion.key_mapping import DROPPABLE_BUFFERS, to_original_state
from mgpt.models import MiniGPTForConditionalGeneration
from mgpt.models.presets import PUBLISHED, preset
from tests.fixtures import golden_cases as golden

KEYS = {
    "minigpt4-vicuna-7b": "v1_vicuna7b",
    "minigpt4-vicuna-13b": "v1_vicuna13b",
    "minigpt4-llama2-7b": "v1_llama2_7b",
    "minigpt-v2": "v2_llama2_7b",
}
TRAINABLE = {
    "minigpt4-vicuna-7b": 3_149_824,
    "minigpt4-vicuna-13b": 3_937_280,
    "minigpt4-llama2-7b": 23_072_768,
    "minigpt-v2": 56_627_200,
}


def published(name: str) -> MiniGPTForConditionalGeneration:
    with torch.device("meta"):
        return MiniGPTForConditionalGeneration(preset(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_names_and_shapes(name):
    model = published(name)
    recorded = json.loads((golden.FOLDER / f"{KEYS[name]}_keys_real.json").read_text())
    expected = {entry["key"]: entry["shape"] for entry in recorded if not entry["key"].endswith(DROPPABLE_BUFFERS)}
    lora = model.config.lora is not None
    assert {key: list(tensor.shape) for key, tensor in to_original_state(model.state_dict(), lora).items()} == expected
    assert model.freeze_report().trainable == TRAINABLE[name]
    trained = to_original_state(dict(model.trainable_parameters()), lora)
    assert set(trained) == {entry["key"] for entry in recorded if entry["kind"] == "trainable"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_to_original_has_the_original_names(name):
    model = published(name)
    recorded = json.loads((golden.FOLDER / f"{KEYS[name]}_keys_real.json").read_text())
    saved = {entry["key"]: entry["shape"] for entry in recorded if entry["in_saved_checkpoint"]}
    assert {key: list(tensor.shape) for key, tensor in to_original(model).items()} == saved


def test_image_token_counts():
    assert [preset(name).num_image_tokens for name in PUBLISHED] == [32, 32, 64, 256]


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"minigpt5.*minigpt-v2"):
        preset("minigpt5")
