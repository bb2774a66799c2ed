"""A model as a training worker gets it: how it is held is what the settings say, whatever it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt.models.loading import ModelSpec
from tests.fixtures.training_data import make_backbones

FRESH = {"merge": 4, "lora": {"r": 2, "lora_alpha": 4}}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_backbones(tmp_path_factory.mktemp("backbones") / "backbones")


@pytest.mark.parametrize("trained", [False, True])
def test_backbones_are_held_in_the_wanted_precision_and_trained_weights_in_full(
    backbones: dict[str, str], tmp_path: Path, trained: bool
) -> None:
    weights = None
    if trained:
        ModelSpec(backbones, None, FRESH).model().save_trainable(tmp_path / "weights")
        weights = str(tmp_path / "weights")
    model = ModelSpec(
        backbones, weights, {} if trained else FRESH, {"precision": "bf16", "attn_implementation": "eager"}
    ).model()
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {kinds[name] for name in model.trainable_parameters()} == {torch.float32}
    assert {kind for name, kind in kinds.items() if name not in model.trainable_parameters()} == {torch.bfloat16}
    assert model.language_model.config._attn_implementation == "eager"


def test_activations_are_recomputed_where_wanted(backbones: dict[str, str]) -> None:
    assert (
        ModelSpec(backbones, None, FRESH, {"checkpoint_language": True})
        .model()
        .language_model.is_gradient_checkpointing
    )
    assert not ModelSpec(backbones, None, FRESH).model().language_model.is_gradient_checkpointing
