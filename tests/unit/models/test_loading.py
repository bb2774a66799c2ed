"""ModelSpec: one loader for new and trained models, and the lookup of backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt.models.compat import attention_implementation
from mgpt.models.loading import SHIPPED_BACKBONES, ModelSpec, find_backbone, local_folder
from tests.fixtures.training_data import make_backbones

INIT = {"merge": 4, "lora": {"r": 2, "lora_alpha": 4}}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_backbones(tmp_path_factory.mktemp("backbones") / "backbones")


@pytest.mark.parametrize("trained", [False, True])
def test_precision_applies_to_backbones_only(backbones: dict[str, str], tmp_path: Path, trained: bool) -> None:
    weights = None
    if trained:
        ModelSpec(backbones, None, INIT).load_model().save_trainable(tmp_path / "weights")
        weights = str(tmp_path / "weights")
    model = ModelSpec(
        backbones, weights, {} if trained else INIT, {"precision": "bf16", "attn_implementation": "eager"}
    ).load_model()
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {kinds[name] for name in model.trainable_parameters()} == {torch.float32}
    assert {kind for name, kind in kinds.items() if name not in model.trainable_parameters()} == {torch.bfloat16}
    assert attention_implementation(model.language_model.config) == "eager"


def test_activation_checkpointing_setting(backbones: dict[str, str]) -> None:
    assert (
        ModelSpec(backbones, None, INIT, {"checkpoint_language": True})
        .load_model()
        .language_model.is_gradient_checkpointing
    )
    assert not ModelSpec(backbones, None, INIT).load_model().language_model.is_gradient_checkpointing


def test_backbones_are_found_where_weights_were_trained(backbones: dict[str, str], tmp_path: Path) -> None:
    ModelSpec(backbones, None, INIT).load_model().save_trainable(tmp_path / "weights")
    spec = ModelSpec({}, str(tmp_path / "weights"))
    assert spec.backbone_folders() == {name: Path(folder) for name, folder in backbones.items()}
    assert spec.load_model().config.lora["r"] == 2


def test_surplus_backbone_is_error(backbones: dict[str, str], tmp_path: Path) -> None:
    ModelSpec(backbones, None, INIT).load_model().save_trainable(tmp_path / "weights")
    surplus = {**backbones, "qformer": backbones["vision"]}
    with pytest.raises(ValueError, match="qformer given"):
        ModelSpec(surplus, str(tmp_path / "weights")).load_model()


def test_backbone_lookup_order(backbones: dict[str, str], tmp_path: Path) -> None:
    recorded = {"id": "tower", "sha256": "abc", "uri": str(tmp_path / "moved")}
    assert find_backbone("vision", recorded, backbones["vision"]) == Path(backbones["vision"])
    assert find_backbone("vision", {**recorded, "uri": backbones["vision"]}, "/absent") == Path(backbones["vision"])
    assert find_backbone("vision", recorded) == SHIPPED_BACKBONES / "vision"
    with pytest.raises(ValueError, match=r"'audio' \(tower, sha256 abc\) is in none of /absent"):
        find_backbone("audio", recorded, "/absent")


def test_local_folder_is_not_copied(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == tmp_path
