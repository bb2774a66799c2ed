"""Known mistakes in converting the original weights.

Every test compares ours with a value recorded from the original, and shows that the mistaken variant differs.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaTokenizer

from mgpt.conversion.key_mapping import tensors_of
from mgpt.models import backbones as backbones_module
from mgpt.models.image_processing_minigpt import MiniGPTImageProcessor
from mgpt.models.tokenizer import build_tokenizer, save_tokenizer
from mgpt.models.vision import merge_tokens, resize_position_embeddings
from tests.fixtures import golden_cases as golden
from tests.fixtures.tiny_models import image as random_image

TOLERANCE = 1e-5


def features_error(model, version="v2", name="single_turn"):
    tensors = golden.case(version, name)[1]
    with torch.no_grad():
        return (model.get_image_features(tensors["input.image"]) - tensors["output.image_embeds"]).abs().max().item()


def logits_error(model, processor=None, version="v2", name="single_turn"):
    texts, tensors = golden.case(version, name)
    batch = (processor or golden.processor(version))(tensors["input.image"], golden.conversations(texts))
    with torch.no_grad():
        logits = model(**batch).logits
    pairs = golden.same_rows(
        logits, batch["attention_mask"], tensors["output.logits"], tensors["output.attention_mask"]
    )
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def vision_hidden(model):
    with torch.no_grad():
        return model.vision_tower(golden.case("v2", "single_turn")[1]["input.image"]).last_hidden_state


def projected_error(model, merged):
    with torch.no_grad():
        return (
            (model.projection(merged) - golden.case("v2", "single_turn")[1]["output.image_embeds"]).abs().max().item()
        )


def test_merge_is_a_strip_not_a_square():
    model = golden.model("v2")
    hidden = vision_hidden(model)
    strip = merge_tokens(hidden, 64, 4)
    square = hidden[:, 1:].reshape(4, 4, 2, 4, 2, 64).permute(0, 1, 3, 2, 4, 5).reshape(4, 16, 256)
    assert projected_error(model, strip) < TOLERANCE
    assert projected_error(model, square) > 1


def test_cls_token_is_dropped():
    model = golden.model("v2")
    with_cls = vision_hidden(model)[:, :64].reshape(4, 16, 256)
    assert features_error(model) < TOLERANCE
    assert projected_error(model, with_cls) > 1


def test_ln_vision_is_applied():
    model = golden.new_model("v2")
    assert features_error(model) < TOLERANCE
    model.vision_tower.post_layernorm = nn.Identity()
    assert features_error(model) > 1


def test_blip2_norm_belongs_to_the_qformer_only():
    model = golden.new_model("v2")
    assert torch.equal(model.vision_tower.post_layernorm.weight, torch.ones(64))
    assert torch.equal(model.vision_tower.post_layernorm.bias, torch.zeros(64))
    blip2 = tensors_of(golden.FOLDER / "v1" / "blip2_qformer.pth")
    assert torch.equal(golden.model("v1").vision_tower.post_layernorm.weight, blip2["ln_vision.weight"])
    model.vision_tower.post_layernorm.weight.data = blip2["ln_vision.weight"]
    model.vision_tower.post_layernorm.bias.data = blip2["ln_vision.bias"]
    assert features_error(model) > 0.1


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_query_and_value_biases(version):
    """Checks the weights too: a key bias does not change the output."""
    eva = tensors_of(golden.FOLDER / version / "eva_vit.pth")
    for number, layer in enumerate(golden.model(version).vision_tower.encoder.layers):
        query, key, value = layer.self_attn.qkv.bias.chunk(3)
        assert torch.equal(query, eva[f"blocks.{number}.attn.q_bias"])
        assert torch.equal(value, eva[f"blocks.{number}.attn.v_bias"])
        assert not key.any()
    model = golden.new_model("v2")
    for layer in model.vision_tower.encoder.layers:
        query, key, value = layer.self_attn.qkv.bias.data.chunk(3)
        layer.self_attn.qkv.bias.data = torch.cat([query, value, key])
    assert features_error(model) > 1e-2


def test_gelu_is_exact():
    """The difference shows in the features, not in the loss."""
    model = golden.new_model("v2")
    for layer in model.vision_tower.encoder.layers:
        layer.mlp.activation_fn = nn.GELU(approximate="tanh")
    assert features_error(model) > 1e-4
    bridge = golden.new_model("v1")
    assert features_error(bridge, "v1", "instruction") < TOLERANCE
    for layer in bridge.qformer.encoder.layer:
        layer.intermediate_query.intermediate_act_fn = nn.GELU(approximate="tanh")
    assert features_error(bridge, "v1", "instruction") > 5e-5


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_epsilons(version, tmp_path):
    """Hardly visible in any output, so checked directly, also after a reload."""
    model = golden.model(version)
    model.save_pretrained(tmp_path)
    for tower in (model.vision_tower, type(model).from_pretrained(tmp_path).vision_tower):
        assert tower.post_layernorm.eps == 1e-5
        assert {layer.layer_norm1.eps for layer in tower.encoder.layers} == {1e-6}
    if version == "v1":
        assert model.qformer.layernorm.eps == 1e-12


def test_epsilon_matters_for_flat_tokens():
    norm = golden.model("v2").vision_tower.post_layernorm
    flat = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert (norm(flat) - functional.layer_norm(flat, (64,), eps=1e-6)).abs().max() > 0.5


def test_qformer_stays_in_evaluation_mode():
    model = golden.new_model("v1").train()
    assert features_error(model, "v1", "instruction") < TOLERANCE
    assert model.training
    assert model.language_model.training
    model.qformer.train()
    assert features_error(model, "v1", "instruction") > 0.1


def test_lora_is_scaled_by_alpha_over_r():
    model = golden.new_model("v2")
    assert logits_error(model) < TOLERANCE
    for module in model.language_model.modules():
        if hasattr(module, "scaling") and hasattr(module, "lora_A"):
            assert module.scaling == {"default": 16 / 4}
            module.scaling = {"default": 1.0}
    assert logits_error(model) > 0.5


def test_each_segment_gets_its_leading_space():
    """`</Img> what` on its own has other ids than within a longer string."""
    tokenizer = golden.processor("v2").tokenizer
    alone = tokenizer("</Img> what is in the image?", add_special_tokens=False).input_ids
    joined = tokenizer("<Img></Img> what is in the image?", add_special_tokens=False).input_ids
    assert alone == [291, 481, 280, 470, 427, 266, 318, 262, 273, 493]
    assert joined[-len(alone) :] != alone


def test_transformers_own_llama_tokenizer_is_not_used(tmp_path):
    """Its ids differ after a special token, which starts every later turn; ours survive saving and Auto loading."""
    folder = golden.FOLDER / "v2" / "llm"
    expected = [1, 303, 329, 486, 347, 458, 401, 329, 486]
    text = "<s>[INST] hi [/INST]"
    assert build_tokenizer(folder)(text, add_special_tokens=False).input_ids == expected
    assert LlamaTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids != expected
    save_tokenizer(build_tokenizer(folder), tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False).input_ids == expected


def test_dollars_are_text_and_never_padding():
    """The original pads with `$$` and drops it from loss and attention mask; ours keeps it in both."""
    processor = golden.processor("v2")
    batch = processor(
        None, [golden.messages("cost?", "a $$ b"), golden.messages("a longer question, for padding?", "yes")]
    )
    pad = processor.tokenizer("x$$y", add_special_tokens=False).input_ids[1]
    position = batch["input_ids"][0].tolist().index(328)  # "a $$ b" has the piece " $$"
    assert pad == 305
    assert batch["labels"][0, position] == 328
    row = processor(None, [golden.messages("cost?", "x$$y")])
    assert 305 in row["labels"][0].tolist()
    assert row["attention_mask"].all()
    tokenizer = build_tokenizer(golden.FOLDER / "v2" / "llm")
    tokenizer.pad_token = "$$"
    with pytest.raises(ValueError, match="pad_token"):
        save_tokenizer(tokenizer, golden.FOLDER / "never")


def test_bos_is_single_in_training_and_double_in_a_v2_prompt():
    processor = golden.processor("v2")
    training = processor(None, [golden.messages("hi", "yes")])["input_ids"][0].tolist()
    prompt = processor(None, [golden.messages("hi")])["input_ids"][0].tolist()
    assert training[:2] == [1, 303]
    assert prompt[:3] == [1, 1, 303]
    assert golden.processor("v1")(None, [golden.messages("hi")])["input_ids"][0].tolist()[:2] == [1, 330]


def test_question_ends_with_two_spaces_in_training_only():
    processor = golden.processor("v2")
    tokens = {
        name: processor(None, [conversation])["input_ids"][0].tolist()
        for name, conversation in (("training", golden.messages("a", "b")), ("prompt", golden.messages("a")))
    }
    opened = [1, *processor.tokenizer("[INST] a  [/INST]", add_special_tokens=False).input_ids]
    assert tokens["training"][: len(opened)] == opened
    assert tokens["prompt"] == [1, *processor.tokenizer("<s>[INST] a [/INST]", add_special_tokens=False).input_ids]
    assert processor(None, [golden.messages("a ", "b")])["input_ids"][0].tolist() == tokens["training"]


def test_generate_returns_new_tokens_only():
    """transformers 4.30 prepended a BOS that the model never saw; here nothing is prepended."""
    texts, tensors = golden.case("v2", "generate")
    batch = golden.processor("v2")(tensors["input.images"], texts["input.texts"])
    assert (
        golden.model("v2").generate(**batch, max_new_tokens=1).tolist() == tensors["output.gen_new_ids"][:, :1].tolist()
    )


def test_loss_is_the_mean_over_supervised_tokens():
    """The original's per-row loss divides by the padded length (modeling_llama.py:99)."""
    model, processor = golden.model("v2"), golden.processor("v2")
    short, long = (
        golden.messages("where?", "here"),
        golden.messages("describe this image in detail.", "two dogs are running near a lake."),
    )
    with torch.no_grad():
        alone, _ = model.loss_sum(processor(None, [short]))
        other, _ = model.loss_sum(processor(None, [long]))
        both, count = model.loss_sum(processor(None, [short, long]))
        mean = model(**processor(None, [short, long])).loss
    assert torch.isclose(alone + other, both, rtol=1e-5)
    assert torch.isclose(both / count, mean, rtol=1e-6)


def test_position_embedding_resize():
    stored = tensors_of(golden.FOLDER / "v2" / "eva_vit.pth")["pos_embed"]
    ours = resize_position_embeddings(stored, 64)
    assert torch.equal(ours, golden.model("v2").vision_tower.embeddings.position_embedding)
    grid = stored[:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    variants = [
        {"mode": "bicubic", "align_corners": True},
        {"mode": "bilinear", "align_corners": False},
        {"mode": "bicubic", "align_corners": False, "antialias": True},
    ]
    for variant in variants:
        other = functional.interpolate(grid, size=(8, 8), **variant).permute(0, 2, 3, 1).reshape(1, 64, 64)
        assert (other - ours[:, 1:]).abs().max() > 1e-2
    assert torch.equal(resize_position_embeddings(stored, 16), stored)


def test_only_blocks_beyond_depth_are_dropped():
    """The file has one more block than the model."""
    eva = tensors_of(golden.FOLDER / "v2" / "eva_vit.pth")
    assert "blocks.3.norm1.weight" in eva
    assert len(golden.model("v2").vision_tower.encoder.layers) == 3


def test_truncation_keeps_end_symbol():
    """The original cuts the answer and its end symbol together (minigpt_base.py:252-261)."""
    processor = golden.processor("v1")
    answer = "two dogs are running near a lake, and the scene is bright and very quiet."
    processor = type(processor)(
        processor.image_processor, processor.tokenizer, processor.image_token_id, 32, "minigpt4", max_answer_tokens=6
    )
    labels = processor(None, [golden.messages("what?", answer)])["labels"][0]
    supervised = labels[labels != -100].tolist()
    assert len(supervised) == 6
    assert supervised[-1] == 326


def test_no_turn_is_dropped():
    """The original drops turns beyond a token budget; here the row is complete, or an error."""
    processor = golden.processor("v2")
    turns = ["where?", "here"] * 30
    labels = processor(None, [golden.messages(*turns)])["labels"][0]
    assert (labels == 2).sum() == 30
    with pytest.raises(ValueError, match=r"conversations\[0\]: \d+ tokens, more than max_length 1024"):
        processor(None, [golden.messages(*(turns * 10))])


def test_resize_is_pillows():
    """An antialiased bicubic resize of tensors differs by a few hundredths."""
    image = random_image(3, 97, 61)
    ours = MiniGPTImageProcessor(56)(image).pixel_values[0]
    import numpy as np

    from mgpt.models.image_processing_minigpt import IMAGE_MEAN, IMAGE_STD, as_rgb

    tensor = torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1)[None].float().div(255)
    other = functional.interpolate(tensor, size=(56, 56), mode="bicubic", antialias=True).clamp(0, 1)[0]
    other = (other - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    assert 1e-3 < (ours - other).abs().max() < 0.2


def test_missing_language_model_weight_is_error(tmp_path, backbones):
    """transformers only warns, and initialises it at random."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(backbones["language"], tmp_path / "language")
    state = load_file(tmp_path / "language" / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "language" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: model\.norm\.weight"):
        backbones_module.load_language(tmp_path / "language", torch.float32)
