"""8-bit and 4-bit language models, where the `quantized` extra is installed; bitsandbytes also runs on a CPU."""

from __future__ import annotations

import pytest
import torch

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny

pytest.importorskip("bitsandbytes")

LANGUAGE = golden.FOLDER / "v2" / "llm"  # 64 wide: 4-bit weights go in blocks of 64
CONVERSATION = golden.messages("<Img><ImageHere></Img> what is in the image?", "a man and two dogs.")


def built(backbones, quantization):
    return MiniGPTForConditionalGeneration.from_backbones(
        backbones["vision"], LANGUAGE, lora=tiny.LORA, quantization=quantization
    )


@pytest.mark.parametrize(("kind", "layer", "tolerance"), [("8bit", "Linear8bitLt", 0.01), ("4bit", "Linear4bit", 0.1)])
def test_quantized_model_trains_and_reloads(kind, layer, tolerance, backbones, tmp_path):
    model, exact = built(backbones, kind).train(), built(backbones, None)
    assert type(model.language_model.model.layers[0].self_attn.k_proj).__name__ == layer
    assert {parameter.dtype for parameter in model.trainable_parameters().values()} == {torch.float32}
    processor = MiniGPTProcessor.from_config(model.config, LANGUAGE)
    batch = processor([tiny.image(0)], [CONVERSATION])
    total, count = model.loss_sum(batch)
    expected, _ = exact.loss_sum(batch)
    assert 0 < abs(total - expected) / count < tolerance * expected / count
    total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.trainable_parameters().values())
    assert any(parameter.grad.any() for name, parameter in model.trainable_parameters().items() if "lora_B" in name)
    model.eval().save_trainable(tmp_path / "trained", processor)
    folders = {"vision": backbones["vision"], "language": LANGUAGE}
    again = MiniGPTForConditionalGeneration.from_trainable(tmp_path / "trained", folders, quantization=kind)
    prompt = processor([tiny.image(0)], [CONVERSATION[:1]])
    assert torch.equal(model.generate(**prompt, max_new_tokens=6), again.generate(**prompt, max_new_tokens=6))
