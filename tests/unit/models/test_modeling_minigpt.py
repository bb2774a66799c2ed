"""The model: saving, generation, packing, precision, activation checkpointing."""

from __future__ import annotations

import pytest
import torch

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.models import backbones as backbones_module
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny
from tests.fixtures.tiny_models import QUESTIONS, images_of, training_batch


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request, backbones):
    model = tiny.v1(backbones) if request.param == "v1" else tiny.v2(backbones)
    return model, MiniGPTProcessor.from_config(model.config, backbones["language"])


def same(one, other, **inputs):
    with torch.no_grad():
        return torch.equal(one(**inputs).logits, other(**inputs).logits)


def test_saved_model_reloads_exactly(pair, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    again = MiniGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert same(model, again, **training_batch(processor))
    assert again.freeze_report() == model.freeze_report()


def test_trained_weights_reload_exactly(pair, backbones, tmp_path):
    model, processor = pair
    model.save_trainable(tmp_path / "trained", processor)
    folders = {name: backbones[name] for name in model.config.backbones}
    again = MiniGPTForConditionalGeneration.from_trainable(tmp_path / "trained", folders)
    assert same(model, again, **training_batch(processor))
    assert {path.name for path in (tmp_path / "trained").iterdir()} >= {
        "trainable.safetensors",
        "config.json",
        "README.md",
        "tokenizer.json",
    }
    assert MiniGPTProcessor.from_pretrained(tmp_path / "trained").to_dict() == processor.to_dict()


def test_seed_determines_initialisation(backbones):
    one, other, third = (
        tiny.v1(backbones),
        tiny.v1(backbones),
        MiniGPTForConditionalGeneration.from_backbones(**backbones, seed=1),
    )
    assert torch.equal(one.projection.weight, other.projection.weight)
    assert not torch.equal(one.projection.weight, third.projection.weight)


def test_new_lora_has_no_effect(backbones):
    with_lora = MiniGPTForConditionalGeneration.from_backbones(
        backbones["vision"], backbones["language"], lora=tiny.LORA
    )
    without = MiniGPTForConditionalGeneration.from_backbones(backbones["vision"], backbones["language"])
    assert same(with_lora, without, input_ids=torch.tensor([[1, 5, 9, 30]]))


def test_batched_generation_equals_single(pair):
    model, processor = pair
    batch = processor(
        [images_of(question) for question in QUESTIONS], [golden.messages(question) for question in QUESTIONS]
    )
    assert not batch["attention_mask"][1, 0]  # padded on the left
    together = model.generate(**batch, max_new_tokens=12)
    for number, question in enumerate(QUESTIONS):
        alone = model.generate(
            **processor(images_of(question) or None, [golden.messages(question)]), max_new_tokens=12
        )[0]
        assert together[number, : len(alone)].tolist() == alone.tolist()


def test_padding_side_does_not_change_generation(pair):
    model, processor = pair
    conversations, images = (
        [golden.messages(question) for question in QUESTIONS],
        [images_of(question) for question in QUESTIONS],
    )
    left = model.generate(**processor(images, conversations), max_new_tokens=6)
    assert torch.equal(left, model.generate(**processor(images, conversations, padding_side="right"), max_new_tokens=6))


def test_generation_without_cache(pair):
    model, processor = pair
    batch = processor(
        [images_of(question) for question in QUESTIONS], [golden.messages(question) for question in QUESTIONS]
    )
    assert torch.equal(
        model.generate(**batch, max_new_tokens=6), model.generate(**batch, max_new_tokens=6, use_cache=False)
    )


def test_loss_with_and_without_logits(pair):
    model, processor = pair
    batch = training_batch(processor)
    with torch.no_grad():
        whole, pruned = model(**batch), model(**batch, return_logits=False)
        total, count = model.loss_sum(batch)
    assert pruned.logits is None
    assert whole.logits.shape == (*batch["input_ids"].shape, 512)
    assert torch.isclose(whole.loss, pruned.loss, rtol=1e-6)
    assert torch.isclose(total / count, whole.loss, rtol=1e-6)
    assert count == (batch["labels"] != -100).sum()
    assert torch.isclose(model(**batch, num_items_in_batch=10).loss, total / 10)


def test_no_supervised_token_gives_zero_loss(pair):
    model, processor = pair
    batch = training_batch(processor, [0])
    batch["labels"].fill_(-100)
    total, count = model.loss_sum(batch)
    assert (total.item(), count.item()) == (0, 0)
    total.backward()


def test_text_only_batch_has_backward_pass(pair):
    """Without LoRA a text-only batch uses no trained parameter; its gradients are zero."""
    model, processor = pair
    model.zero_grad()
    total, _ = model.loss_sum(training_batch(processor, [1]))
    total.backward()
    assert model.projection.weight.grad is None or not model.projection.weight.grad.any()


def test_image_features_replace_pixels(pair):
    model, processor = pair
    batch = training_batch(processor)
    with torch.no_grad():
        features = model.encode_images(batch["pixel_values"])
        expected = model(**batch).logits
        pixels = batch.pop("pixel_values")
        assert torch.equal(model(**batch, image_features=features).logits, expected)
    assert features.shape == (len(pixels), model.config.num_image_tokens, model.config.projection_inputs)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_samples_are_independent(backbones, implementation):
    """Two samples in one row, with a block mask and restarting positions, have the logits of separate rows."""
    model = tiny.v2(backbones, attn_implementation=implementation)
    processor = MiniGPTProcessor.from_config(model.config, backbones["language"])
    rows = [training_batch(processor, [number]) for number in (0, 1)]
    ids = torch.cat([row["input_ids"] for row in rows], dim=1)
    document = torch.cat([torch.full_like(row["input_ids"], number) for number, row in enumerate(rows)], dim=1)
    positions = torch.cat([torch.arange(row["input_ids"].shape[1]) for row in rows])[None]
    mask = (document[:, :, None] == document[:, None, :]) & torch.ones(
        ids.shape[1], ids.shape[1], dtype=torch.bool
    ).tril()
    with torch.no_grad():
        packed = model(ids, attention_mask=mask, position_ids=positions, pixel_values=rows[0]["pixel_values"]).logits[0]
        alone = [
            model(**{name: row[name] for name in ("input_ids", "pixel_values") if name in row}).logits[0]
            for row in rows
        ]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


def test_packed_loss_is_sum_of_samples(backbones):
    """The first label of a sample is not a target of the sample before it."""
    model = tiny.v2(backbones)
    processor = MiniGPTProcessor.from_config(model.config, backbones["language"])
    rows = [training_batch(processor, [1]), training_batch(processor, [1])]
    joined = {name: torch.cat([row[name] for row in rows], dim=1) for name in ("input_ids", "labels")}
    document = torch.arange(2).repeat_interleave(rows[0]["input_ids"].shape[1])
    mask = (document[:, None] == document[None]) & torch.ones(len(document), len(document), dtype=torch.bool).tril()
    positions = torch.arange(rows[0]["input_ids"].shape[1]).repeat(2)[None]
    with torch.no_grad():
        packed, count = model.loss_sum({**joined, "attention_mask": mask[None], "position_ids": positions})
        alone, one = model.loss_sum(rows[0])
    assert count == 2 * one
    assert torch.isclose(packed, 2 * alone, rtol=1e-5)


@pytest.mark.parametrize("flags", [{"vision": True}, {"language": True}, {"vision": True, "language": True}])
def test_activation_checkpointing_keeps_gradients(backbones, flags):
    model = tiny.v2(backbones).train()
    for module in model.language_model.modules():  # recomputation would draw other numbers
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = training_batch(MiniGPTProcessor.from_config(model.config, backbones["language"]))
    gradients = []
    for chosen in ({}, flags):
        model.set_activation_checkpointing(**chosen)
        assert model.language_model.is_gradient_checkpointing == chosen.get("language", False)
        assert model.vision_tower.is_gradient_checkpointing == chosen.get("vision", False)
        model.zero_grad()
        model.loss_sum(batch)[0].backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.trainable_parameters().items()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5) for name in gradients[0])


def test_trained_weights_stay_float32(backbones, tmp_path):
    model = tiny.v2(backbones, dtype=torch.bfloat16)
    assert model.language_model.lm_head.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.trainable_parameters().values()} == {torch.float32}
    processor = MiniGPTProcessor.from_config(model.config, backbones["language"])
    batch = training_batch(processor)
    total, count = model.loss_sum(batch)
    total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.trainable_parameters().values())
    exact, _ = tiny.v2(backbones).loss_sum(batch)
    assert torch.isclose(total / count, exact / count, rtol=0.05)
    model.save_pretrained(tmp_path)
    again = MiniGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert again.language_model.lm_head.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in again.trainable_parameters().values()} == {torch.float32}


def test_freeze_report_counts(backbones):
    report = tiny.v2(backbones).freeze_report()
    lora = 2 * 2 * 4 * (32 + 32)
    assert report.parts["projection"] == (32 * 4 * 32 + 32, 32 * 4 * 32 + 32)
    assert report.parts["vision_tower"][0] == 0
    assert report.parts["language_model"][0] == lora
    assert report.trainable == lora + 32 * 4 * 32 + 32
    assert 0 < report.share < 1
    assert "projection" in str(report)


def test_only_trainable_parameters_get_gradients(pair):
    model, processor = pair
    model.zero_grad()
    model.loss_sum(training_batch(processor))[0].backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == set(
        model.trainable_parameters()
    )


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantization_arguments(backbones, monkeypatch, kind):
    """Checks the arguments to transformers; bitsandbytes itself may not be installed."""
    passed = {}
    monkeypatch.setattr(backbones_module, "_load", lambda *args, **kwargs: passed.update(kwargs))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "bitsandbytes" else None)
    monkeypatch.setattr("transformers.utils.quantization_config.BitsAndBytesConfig.post_init", lambda self: None)
    backbones_module.load_language(backbones["language"], torch.bfloat16, kind)
    config = passed["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == (kind == "8bit", kind == "4bit")
    if kind == "4bit":
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_quantization_without_bitsandbytes(backbones, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes.*mgpt\[quantized\]"):
        MiniGPTForConditionalGeneration.from_backbones(**backbones, quantization="4bit")


@pytest.mark.parametrize("model_name", [tiny.v1, tiny.v2])
def test_half_precision_image_parts_run_outside_autocast(backbones, model_name):
    """Autocast would only convert their norms to float32 and back; float32 parts stay under it."""
    model, pixels, autocast = (
        model_name(backbones),
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
        [],
    )
    parts = [part for part in (model.vision_tower, model.qformer) if part is not None]
    for part in parts:
        part.register_forward_pre_hook(lambda *_: autocast.append(torch.is_autocast_enabled("cpu")))

    def encoded():
        autocast.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model.encode_images(pixels)
            assert torch.is_autocast_enabled("cpu")
        return autocast

    assert encoded() == [True] * len(parts)
    for part in parts:
        part.to(torch.bfloat16)
    if model.qformer is not None:
        model.query_tokens.data = model.query_tokens.data.bfloat16()
    assert encoded() == [False] * len(parts)
