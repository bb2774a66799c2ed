"""Conversion of original checkpoints to ours and back."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mgpt.conversion.convert import convert_backbones, convert_original, from_original, to_original
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.models.backbones import load_qformer, load_vision
from tests.fixtures import golden_cases as golden


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_round_trip_is_exact(version, tmp_path):
    to_original(golden.model(version), tmp_path / "sub" / "back.pth")
    back = torch.load(tmp_path / "sub" / "back.pth", weights_only=True)["model"]
    released = torch.load(golden.FOLDER / version / "released.pth", weights_only=True)["model"]
    assert back.keys() == released.keys()
    assert all(
        torch.equal(back[name], released[name]) and back[name].dtype == released[name].dtype for name in released
    )
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["back.pth"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_converted_folder_reloads_exactly(version, tmp_path):
    out = convert_original(golden.MODEL_NAMES[version], out=tmp_path / "ours", **golden.files(version))
    texts, tensors = golden.case(version, "instruction" if version == "v1" else "single_turn")
    model, processor = MiniGPTForConditionalGeneration.from_pretrained(out), MiniGPTProcessor.from_pretrained(out)
    batch = processor(tensors["input.image"], golden.conversations(texts))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, golden.model(version)(**batch).logits)
    assert model.vision_tower.post_layernorm.eps == 1e-5
    assert model.freeze_report().names == golden.model(version).freeze_report().names
    assert "image-text-to-text" in (out / "README.md").read_text()


def test_auto_classes_load_converted_folder(tmp_path):
    out = convert_original("minigpt-v2", out=tmp_path / "ours", **golden.files("v2"))
    assert AutoConfig.from_pretrained(out).num_image_tokens == 16
    assert type(AutoModelForImageTextToText.from_pretrained(out)) is MiniGPTForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(out)) is MiniGPTProcessor


def test_later_peft_names_are_read(tmp_path):
    """peft 0.3 and later write `lora_A.default.weight`."""
    files = golden.files("v2")
    released = torch.load(files["released"], weights_only=True)
    released["model"] = {
        name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight"): tensor
        for name, tensor in released["model"].items()
    }
    assert any("default" in name for name in released["model"])
    torch.save(released, tmp_path / "newer.pth")
    model = from_original("minigpt-v2", **{**files, "released": tmp_path / "newer.pth"})
    expected = golden.model("v2").trainable_parameters()
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.trainable_parameters().items())


def test_runner_checkpoint_with_other_entries(tmp_path):
    files = golden.files("v1")
    released = torch.load(files["released"], weights_only=True)
    torch.save(
        {
            **released,
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "config": {"run": {"seed": 42}},
            "scaler": None,
            "epoch": 4,
        },
        tmp_path / "checkpoint_4.pth",
    )
    model = from_original("minigpt4", **{**files, "released": tmp_path / "checkpoint_4.pth"})
    assert torch.equal(model.projection.weight, golden.model("v1").projection.weight)


def test_llama2_variant_has_no_lora():
    """MiniGPT-4's LLaMA-2 variant uses v2's files without LoRA."""
    files = golden.files("v2")
    sizes = {name: value for name, value in files["sizes"].items() if name != "lora"}
    with pytest.raises(ValueError, match=r"unexpected: .*lora_A"):
        from_original("minigpt4-llama2", **{**files, "sizes": sizes})


def test_llama2_variant_loads(tmp_path):
    files = golden.files("v2")
    projection = {
        name: tensor
        for name, tensor in torch.load(files["released"], weights_only=True)["model"].items()
        if "llama_proj" in name
    }
    torch.save({"model": projection}, tmp_path / "released.pth")
    sizes = {name: value for name, value in files["sizes"].items() if name != "lora"}
    model = from_original("minigpt4-llama2", **{**files, "sizes": sizes, "released": tmp_path / "released.pth"})
    pixels = golden.case("v2", "single_turn")[1]
    with torch.no_grad():
        assert (model.get_image_features(pixels["input.image"]) - pixels["output.image_embeds"]).abs().max() < 1e-5
    assert model.qformer is None
    assert model.config.prompt_format == "minigpt4-llama2"
    assert set(to_original(model)) >= set(projection)


def test_convert_backbones(tmp_path):
    """Backbone folders hold the same weights as the whole converted model."""
    files = golden.files("v1")
    hashes = convert_backbones(
        "minigpt4", files["eva_vit"], tmp_path / "backbones", files["qformer"], files["sizes"], dtype=torch.float32
    )
    assert hashes.keys() == {"vision", "qformer"}
    vision = load_vision(tmp_path / "backbones" / "vision", torch.float32)
    bridge, query_tokens = load_qformer(tmp_path / "backbones" / "qformer", torch.float32)
    whole = golden.model("v1")
    for ours, theirs in ((vision, whole.vision_tower), (bridge, whole.qformer)):
        expected = theirs.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert torch.equal(query_tokens, whole.query_tokens)


def test_training_changes_all_trainable_parameters_only():
    model = golden.new_model("v2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    texts, tensors = golden.case("v2", "single_turn")
    batch = golden.processor("v2")(tensors["input.image"], golden.conversations(texts))
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = model(**batch, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(model.trainable_parameters())
