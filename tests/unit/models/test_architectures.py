"""Other vision towers and language models: they train, save, reload and generate like the original's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.models.backbones import save_backbone
from mgpt.models.image_processing_minigpt import IMAGE_MEAN
from mgpt.models.tokenizer import load_tokenizer
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    **SIZE,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_key_value_heads": 2,
}
VISION = {**SIZE, "image_size": 32, "patch_size": 8}
PAIRS = {
    "siglip-qwen": (
        lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
        lambda: Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=True)),
    ),
    "clip-llama3": (
        lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
        lambda: LlamaForCausalLM(LlamaConfig(**TEXT, rope_theta=500000.0)),
    ),
    "dino-llama3": (lambda: Dinov2Model(Dinov2Config(**VISION)), lambda: LlamaForCausalLM(LlamaConfig(**TEXT))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_other_architectures_train_and_reload(name, tmp_path):
    vision, language = PAIRS[name]
    save_backbone(tmp_path / "vision", tiny.randomise(vision(), 1))
    save_backbone(tmp_path / "language", tiny.randomise(language(), 2), tokenizer=tiny.tokenizer())
    folders = {"vision": tmp_path / "vision", "language": tmp_path / "language"}
    model = MiniGPTForConditionalGeneration.from_backbones(**folders, merge=4, lora=tiny.LORA)
    processor = MiniGPTProcessor.from_config(model.config, folders["language"])
    batch = processor([tiny.image(1)], [golden.messages("<Img><ImageHere></Img> what?", "a man")])
    with torch.no_grad():
        assert model.get_image_features(batch["pixel_values"]).shape == (1, 4, 32)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        losses.append(model(**batch, return_logits=False).loss.item())
    assert losses[-1] < losses[0]
    model.save_trainable(tmp_path / "trained", processor)
    again = MiniGPTForConditionalGeneration.from_trainable(tmp_path / "trained", folders)
    prompt = processor([tiny.image(1)], [golden.messages("<Img><ImageHere></Img> what?")])
    assert torch.equal(model.generate(**prompt, max_new_tokens=5), again.generate(**prompt, max_new_tokens=5))
    model.save_pretrained(tmp_path / "whole")
    whole = MiniGPTForConditionalGeneration.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(whole(**batch).logits, model(**batch).logits)


def byte_level_tokenizer(folder):
    """Writes a tokenizer like Qwen's: byte-level, with its own end of text, without BOS and LLaMA's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(
        ["a man is on the street", "two dogs </s> [INST] what is in the image? [/INST]"], trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_byte_level_tokenizer(tmp_path):
    """Answers end with the model's own end of text, so generation stops; LLaMA's `<s>` and `</s>` are plain text."""
    from transformers import GenerationConfig

    language = Qwen2ForCausalLM(Qwen2Config(**{**TEXT, "eos_token_id": None, "bos_token_id": None}))
    language.generation_config = GenerationConfig(eos_token_id=[0])
    save_backbone(tmp_path / "vision", tiny.randomise(PAIRS["siglip-qwen"][0](), 1))
    save_backbone(
        tmp_path / "language", tiny.randomise(language, 2), tokenizer=byte_level_tokenizer(tmp_path / "tokenizer")
    )
    model = MiniGPTForConditionalGeneration.from_backbones(tmp_path / "vision", tmp_path / "language", lora=tiny.LORA)
    processor = MiniGPTProcessor.from_config(model.config, tmp_path / "language")
    batch = processor([tiny.image(1)], [golden.messages("<Img><ImageHere></Img> what?", "a man")])
    ids = batch["input_ids"][0].tolist()
    assert ids[-1] == processor.tokenizer.eos_token_id == 0
    assert (
        processor.tokenizer.decode([token for token in ids if token < 512])
        == "[INST] <Img></Img> what?  [/INST]a man<|end|>"
    )
    model.save_trainable(tmp_path / "trained", processor)
    again = MiniGPTForConditionalGeneration.from_trainable(
        tmp_path / "trained", {n: tmp_path / n for n in ("vision", "language")}
    )
    assert again.generation_config.eos_token_id == [0]
    reader = MiniGPTProcessor.from_pretrained(tmp_path / "trained")
    conversation = golden.messages("<Img><ImageHere></Img> what?", "a man")
    assert torch.equal(reader([tiny.image(1)], [conversation])["input_ids"], batch["input_ids"])
    answer = batch["input_ids"][0, batch["labels"][0] != -100]
    assert reader.answers(answer[None]) == [("a man", True)]
    assert reader.answers(answer[None, :-1]) == [("a man", False)]


def test_foreign_sentencepiece_uses_declared_tokenizer(tmp_path):
    """Gemma's folder has a tokenizer.model too, with other first pieces."""
    byte_level_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not LLaMA's")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    assert load_tokenizer(tmp_path).eos_token == "<|end|>"


def test_pixel_statistics_come_from_the_tower(tmp_path, backbones):
    """SigLIP's folder declares mean and deviation 0.5; CLIP's, which are the original's, are the default."""
    save_backbone(tmp_path / "vision", tiny.randomise(PAIRS["siglip-qwen"][0](), 1))
    halves = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "vision" / "preprocessor_config.json").write_text(json.dumps(halves))
    model = MiniGPTForConditionalGeneration.from_backbones(tmp_path / "vision", backbones["language"])
    processor = MiniGPTProcessor.from_config(model.config, backbones["language"])
    model.save_trainable(tmp_path / "trained", processor)
    white = np.full((9, 9, 3), 255, np.uint8)
    for read in (processor, MiniGPTProcessor.from_pretrained(tmp_path / "trained")):
        assert torch.equal(read.image_processor(white).pixel_values, torch.ones(1, 3, 32, 32))
    usual = MiniGPTForConditionalGeneration.from_backbones(backbones["vision"], backbones["language"])
    assert usual.config.image_mean == list(IMAGE_MEAN)


def test_every_patch_reaches_the_features(tmp_path):
    """The last patch changes the last feature, for a tower with CLS and one without."""
    for number, name in enumerate(("siglip-qwen", "dino-llama3")):
        folder = tmp_path / str(number)
        save_backbone(folder / "vision", tiny.randomise(PAIRS[name][0](), 1))
        save_backbone(folder / "language", tiny.randomise(PAIRS["clip-llama3"][1](), 2), tokenizer=tiny.tokenizer())
        model = MiniGPTForConditionalGeneration.from_backbones(folder / "vision", folder / "language", merge=1)
        pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        last = pixels.clone()
        last[:, :, -8:, -8:] += 1
        with torch.no_grad():
            moved = (model.encode_images(last) - model.encode_images(pixels)).abs().amax(-1)[0]
        assert moved.argmax() == 15


def test_only_blip2_tower_can_be_resized(tmp_path, backbones):
    save_backbone(tmp_path / "vision", tiny.randomise(PAIRS["siglip-qwen"][0](), 1))
    with pytest.raises(ValueError, match=r"image_size: 64 differs from the tower's 32, and only Blip2VisionModel"):
        MiniGPTForConditionalGeneration.from_backbones(tmp_path / "vision", backbones["language"], image_size=64)
    resized = MiniGPTForConditionalGeneration.from_backbones(backbones["vision"], backbones["language"], image_size=64)
    assert resized.config.num_image_tokens == 16
    with torch.no_grad():
        assert resized.get_image_features(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 32)
