"""Malformed input: each case raises its own error and leaves no partial output."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mgpt.conversion.convert import convert_backbones, convert_original, to_original
from mgpt.models import MiniGPTConfig, MiniGPTForConditionalGeneration, MiniGPTImageProcessor, MiniGPTProcessor
from mgpt.models.backbones import load_language, load_qformer, load_vision, quantization_config, save_backbone
from mgpt.models.configuration_minigpt import LoraSpec
from mgpt.models.tokenizer import build_tokenizer, load_tokenizer
from mgpt.models.weights import TRAINABLE_FILE
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny

# Conversion: version, file, change, tensor name, expected message.


def drop(state, name):
    del state[name]


def add(state, name):
    state[name] = torch.zeros(2)


def reshape(state, name):
    state[name] = torch.zeros(3, 5)


def fill_with_nan(state, name):
    state[name] = torch.full_like(state[name], float("nan"))


ALTERED = [
    ("v1", "eva_vit", drop, "patch_embed.proj.bias", r"eva_vit\.pth: missing: visual_encoder\.patch_embed\.proj\.bias"),
    ("v1", "eva_vit", drop, "pos_embed", r"eva_vit\.pth: missing: visual_encoder\.pos_embed"),
    (
        "v1",
        "eva_vit",
        drop,
        "blocks.1.attn.q_bias",
        r"missing: visual_encoder\.blocks\.1\.attn\.qkv\.bias; unexpected: .*v_bias",
    ),
    ("v1", "eva_vit", add, "rel_pos", r"eva_vit\.pth: unexpected: visual_encoder\.rel_pos"),
    (
        "v1",
        "eva_vit",
        reshape,
        "blocks.0.mlp.fc1.weight",
        r"blocks\.0\.mlp\.fc1\.weight is \(3, 5\), expected \(279, 64\)",
    ),
    ("v1", "eva_vit", reshape, "pos_embed", r"pos_embed is \(3, 5\), expected \(1, 17, 64\).*pre_img"),
    ("v1", "eva_vit", fill_with_nan, "cls_token", r"eva_vit\.pth: values that are not finite .*cls_token"),
    ("v1", "qformer", drop, "query_tokens", r"query_tokens is missing, expected \(1, 32, 48\)"),
    ("v1", "qformer", reshape, "query_tokens", r"query_tokens is of shape \(3, 5\)"),
    ("v1", "qformer", drop, "ln_vision.weight", r"missing: ln_vision\.weight"),
    (
        "v1",
        "qformer",
        drop,
        "Qformer.bert.encoder.layer.2.crossattention.self.key.weight",
        r"missing: Qformer.*layer\.2\.crossattention\.self\.key\.weight",
    ),
    ("v1", "released", drop, "llama_proj.bias", r"released\.pth: missing: llama_proj\.bias"),
    ("v1", "released", reshape, "llama_proj.weight", r"shape of projection\.weight: \(3, 5\), expected \(64, 48\)"),
    ("v1", "released", add, "llama_proj.scale", r"released\.pth: unexpected: llama_proj\.scale"),
    ("v1", "released", fill_with_nan, "llama_proj.weight", r"not finite .*llama_proj\.weight"),
    (
        "v2",
        "released",
        drop,
        "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight",
        r"missing: .*layers\.1\.self_attn\.v_proj\.lora_B",
    ),
]


@pytest.mark.parametrize(("version", "which", "change", "name", "message"), ALTERED)
def test_altered_original_files(version, which, change, name, message, tmp_path):
    files = golden.files(version)
    content = torch.load(files[which], weights_only=True)
    change(content.get("model", content), name)
    path = tmp_path / Path(files[which]).name
    torch.save(content, path)
    assert_refused(
        lambda out: convert_original(golden.MODEL_NAMES[version], out=out, **{**files, which: path}), message, tmp_path
    )


class Attack:
    """Writes a file if it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "code ran"))


def test_pickle_with_code(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"model": {"llama_proj.weight": Attack(trace)}}, tmp_path / "evil.pth")
    files = {**golden.files("v1"), "released": tmp_path / "evil.pth"}
    assert_refused(
        lambda out: convert_original("minigpt4", out=out, **files),
        r"evil\.pth: refused, since it holds more than tensors",
        tmp_path,
    )
    assert not trace.exists()


def test_plain_pickle_with_code(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Attack(trace)))
    files = {**golden.files("v1"), "eva_vit": tmp_path / "evil.pth"}
    assert_refused(lambda out: convert_original("minigpt4", out=out, **files), r"evil\.pth: refused", tmp_path)
    assert not trace.exists()


def truncate(source, target, share=0.5):
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: int(len(content) * share)])
    return target


BROKEN = {
    "truncated": (
        lambda path: truncate(golden.FOLDER / "v1" / "released.pth", path),
        r"x\.pth: .*complete|x\.pth: refused",
    ),
    "empty": (lambda path: path.write_bytes(b""), r"x\.pth: cannot be read"),
    "web page": (lambda path: path.write_text("<html>not found</html>"), r"x\.pth: "),
    "list": (lambda path: torch.save([torch.zeros(1)], path), r"expected a dict of tensors.*found list"),
    "no tensors": (lambda path: torch.save({"model": {"epoch": 4}}, path), r"expected a dict of tensors"),
    "absent": (lambda path: None, r"x\.pth: no such file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_released_file(kind, tmp_path):
    make, message = BROKEN[kind]
    make(tmp_path / "x.pth")
    files = {**golden.files("v1"), "released": tmp_path / "x.pth"}
    assert_refused(lambda out: convert_original("minigpt4", out=out, **files), message, tmp_path)


def assert_refused(call, message, tmp_path):
    out = tmp_path / "parent" / "ours"
    with pytest.raises(ValueError, match=message):
        call(out)
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


CALLS = {
    "unknown model": ({"model_name": "minigpt5"}, r"model: 'minigpt5' is unknown; choose one of minigpt4"),
    "no qformer": ({"qformer": None}, r"qformer: minigpt4 needs the BLIP-2 file"),
    "wrong size": (
        {"sizes": {**golden.sizes("v1"), "vit": {"width": 64, "depth": 5, "heads": 4, "patch": 14}}},
        r"missing: visual_encoder\.blocks\.4",
    ),
    "wrong pre_img": (
        {"sizes": {**golden.sizes("v1"), "pre_img": 112}},
        r"pos_embed is \(1, 17, 64\), expected \(1, 65, 64\)",
    ),
    "no llm": ({"llm": golden.FOLDER / "nowhere"}, r"nowhere: no config\.json"),
    "another model's files": ({"released": golden.FOLDER / "v2" / "released.pth"}, r"unexpected: .*lora_A"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_wrong_calls(kind, tmp_path):
    change, message = CALLS[kind]
    arguments = {"model_name": "minigpt4", **golden.files("v1"), **change}
    assert_refused(lambda out: convert_original(out=out, **arguments), message, tmp_path)


def test_surplus_qformer(tmp_path):
    files = {**golden.files("v2"), "qformer": golden.FOLDER / "v1" / "blip2_qformer.pth"}
    assert_refused(lambda out: convert_original("minigpt-v2", out=out, **files), "minigpt-v2 has no Q-Former", tmp_path)


def test_existing_output_is_not_overwritten(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        convert_original("minigpt4", out=tmp_path / "ours", **golden.files("v1"))
    with pytest.raises(ValueError, match="exists already"):
        convert_backbones("minigpt-v2", golden.files("v2")["eva_vit"], tmp_path / "ours", sizes=golden.sizes("v2"))
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["notes.txt"]


def test_missing_language_model_weight(tmp_path):
    shutil.copytree(golden.FOLDER / "v1" / "llm", tmp_path / "llm")
    state = torch.load(tmp_path / "llm" / "pytorch_model.bin", weights_only=True)
    del state["model.layers.1.mlp.up_proj.weight"]
    torch.save(state, tmp_path / "llm" / "pytorch_model.bin")
    files = {**golden.files("v1"), "llm": tmp_path / "llm"}
    assert_refused(
        lambda out: convert_original("minigpt4", out=out, **files),
        r"missing: model\.layers\.1\.mlp\.up_proj\.weight",
        tmp_path,
    )


# Backbones and trained weights.


@pytest.fixture
def trained(tmp_path, backbones):
    """Saved trained weights and copies of their backbone folders, which tests may change."""
    folders = {name: shutil.copytree(folder, tmp_path / "backbones" / name) for name, folder in backbones.items()}
    model = tiny.v1(folders)
    model.save_trainable(tmp_path / "trained", MiniGPTProcessor.from_config(model.config, folders["language"]))
    return tmp_path / "trained", folders


def load(trained):
    return MiniGPTForConditionalGeneration.from_trainable(trained[0], trained[1])


def edit_config(trained, **values):
    path = trained[0] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(trained, change):
    path = trained[0] / TRAINABLE_FILE
    state = load_file(path)
    change(state)
    save_file(state, path)


def other_backbone(trained):
    path = trained[1]["language"] / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] += 1e-3
    save_file(state, path, metadata={"format": "pt"})


MALFORMED = {
    "another backbone": (
        other_backbone,
        r"wrong backbone.*\n.*language: trained on .* sha256 [0-9a-f]{64}, but .* has [0-9a-f]{64}\n.*pretrain stage",
    ),
    "a missing backbone": (lambda trained: trained[1].pop("qformer"), "backbones: qformer not given"),
    "a surplus backbone": (
        lambda trained: trained[1].update(audio=trained[1]["vision"]),
        "backbones: audio given, but",
    ),
    "no weights": (lambda trained: (trained[0] / TRAINABLE_FILE).unlink(), rf"{TRAINABLE_FILE}: no such file"),
    "truncated weights": (
        lambda trained: truncate(trained[0] / TRAINABLE_FILE, trained[0] / TRAINABLE_FILE),
        "not a complete safetensors file",
    ),
    "a weight missing": (
        lambda trained: edit_weights(trained, lambda state: state.pop("projection.bias")),
        r"missing: projection\.bias",
    ),
    "a surplus weight": (
        lambda trained: edit_weights(trained, lambda state: state.update(more=torch.ones(1))),
        "unexpected: more",
    ),
    "a weight of another shape": (
        lambda trained: edit_weights(trained, lambda state: state.update({"projection.bias": torch.ones(7)})),
        r"shape of projection\.bias: \(7,\), expected \(32,\)",
    ),
    "a weight that is NaN": (
        lambda trained: edit_weights(trained, lambda state: fill_with_nan(state, "projection.weight")),
        r"not finite.*projection\.weight",
    ),
    "no configuration": (lambda trained: (trained[0] / "config.json").unlink(), r"config\.json: no such file"),
    "a truncated configuration": (
        lambda trained: truncate(trained[0] / "config.json", trained[0] / "config.json"),
        r"config\.json: not a JSON object",
    ),
    "another kind of model": (
        lambda trained: edit_config(trained, model_type="bert"),
        "model_type is 'bert', expected 'minigpt'",
    ),
    "an unknown format": (
        lambda trained: edit_config(trained, prompt_format="chatml"),
        "prompt_format: 'chatml' is unknown",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_trained_weights(kind, trained):
    change, message = MALFORMED[kind]
    change(trained)
    with pytest.raises(ValueError, match=message):
        load(trained)


def test_non_finite_weights_are_not_saved(tmp_path, backbones):
    model = tiny.v1(backbones)
    model.projection.bias.data[3] = float("inf")
    with pytest.raises(ValueError, match=r"not finite.*projection\.bias"):
        model.save_trainable(tmp_path / "trained")
    assert list(tmp_path.iterdir()) == []


def test_failed_save_leaves_nothing(tmp_path, backbones):
    model = tiny.v1(backbones)
    with pytest.raises(AttributeError):
        model.save_trainable(tmp_path / "trained", processor=object())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "load_part"), [("vision", load_vision), ("language", load_language), ("qformer", load_qformer)]
)
def test_truncated_backbone_weights(part, load_part, tmp_path, backbones):
    folder = shutil.copytree(backbones[part], tmp_path / part)
    truncate(folder / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"{part}: cannot be loaded"):
        load_part(folder, torch.float32)


def test_qformer_without_query_tokens(tmp_path, backbones):
    folder = shutil.copytree(backbones["qformer"], tmp_path / "qformer")
    (folder / "query_tokens.safetensors").unlink()
    with pytest.raises(ValueError, match="needs its query tokens"):
        load_qformer(folder, torch.float32)


def test_query_tokens_for_vision_tower(tmp_path):
    with pytest.raises(ValueError, match="query_tokens: belong to a Blip2QFormerModel"):
        save_backbone(tmp_path / "vision", golden.model("v1").vision_tower, query_tokens=torch.zeros(1, 2, 3))
    assert list(tmp_path.iterdir()) == []


def test_backbones_that_do_not_fit(tmp_path, backbones):
    files = golden.files("v1")
    convert_backbones("minigpt4", files["eva_vit"], tmp_path / "other", files["qformer"], files["sizes"])
    with pytest.raises(ValueError, match=r"encoder_hidden_size: 64 must equal .*32"):
        MiniGPTForConditionalGeneration.from_backbones(
            backbones["vision"], backbones["language"], tmp_path / "other" / "qformer"
        )


def test_merge_that_does_not_divide(backbones):
    with pytest.raises(ValueError, match="merge: 3 does not divide the tower's 16 patches"):
        MiniGPTForConditionalGeneration.from_backbones(backbones["vision"], backbones["language"], merge=3)


def test_lora_on_missing_modules(backbones):
    with pytest.raises(ValueError, match=r"lora\.target_modules: query_key_value not found in LlamaForCausalLM"):
        MiniGPTForConditionalGeneration.from_backbones(
            backbones["vision"],
            backbones["language"],
            lora={"r": 2, "lora_alpha": 2, "target_modules": ["query_key_value"]},
        )


@pytest.mark.parametrize(
    "lora", [{"r": 0, "lora_alpha": 4}, {"r": 4, "lora_alpha": 4, "lora_dropout": 1.0}, {"lora_alpha": 4}]
)
def test_unusable_lora(lora):
    with pytest.raises(ValueError, match="r and lora_alpha must be at least 1"):
        LoraSpec.of(lora)


def test_unknown_quantization(backbones):
    with pytest.raises(ValueError, match="quantization: '2bit' is unknown"):
        quantization_config("2bit", torch.bfloat16)


def test_unknown_architecture():
    with pytest.raises(ValueError, match="model_type: 'perceiver9' is not an architecture"):
        MiniGPTConfig(vision_config={"model_type": "perceiver9"})


def test_to_original_of_another_language_model():
    model = golden.new_model("v2")
    model.config.text_config.model_type = "qwen2"
    with pytest.raises(ValueError, match="knows only its own ViT and LLaMA"):
        to_original(model)


# Tokenizers.


def test_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.model: no such file"):
        build_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.json and no tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_truncated_tokenizer(tmp_path):
    truncate(golden.FOLDER / "v1" / "llm" / "tokenizer.model", tmp_path / "tokenizer.model", 0.3)
    with pytest.raises(ValueError, match=r"not a SentencePiece model, or cut short|first pieces|not rebuilt exactly"):
        build_tokenizer(tmp_path)


# Images and conversations.

IMAGES = {
    "zero-size": (np.zeros((0, 5, 3), np.uint8), r"images\[0\]: the image is 5 x 0 pixels"),
    "zero-size of Pillow": (Image.new("RGB", (0, 4)), r"images\[0\]: the image is 0 x 4 pixels"),
    "text": (b"not an image", r"images\[0\]: cannot be read as an image"),
    "absent": ("/nowhere/image.png", r"images\[0\]: cannot be read as an image"),
    "float array": (np.zeros((4, 4, 3)), r"images\[0\]: expected a PIL image.*float64"),
    "pixels of another size": (
        torch.zeros(3, 8, 9),
        r"images\[0\]: pixels of shape \(3, 8, 9\), expected \(3, 56, 56\)",
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_malformed_images(kind):
    image, message = IMAGES[kind]
    with pytest.raises(ValueError, match=message):
        MiniGPTImageProcessor(56)([image])


def test_truncated_image(tmp_path):
    tiny.image(0, 200, 200).save(tmp_path / "whole.jpg")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        MiniGPTImageProcessor(56)(truncate(tmp_path / "whole.jpg", tmp_path / "cut.jpg"))


IMAGE = "<Img><ImageHere></Img> "
CONVERSATIONS = {
    "too few images": (
        [tiny.image(0)],
        [golden.messages(IMAGE + IMAGE + "a", "b")],
        {},
        r"images: 1 given, but .* 2 <ImageHere> marks \(per conversation: \[2\]\)",
    ),
    "too many images": (
        [tiny.image(0)],
        [golden.messages("a", "b")],
        {},
        "images: 1 given, but .* 0 <ImageHere> marks",
    ),
    "no conversation": (None, [], {}, "conversations: expected a list of message lists"),
    "an empty conversation": (
        None,
        [[]],
        {"labels": True},
        r"conversations\[0\]: must end with a message of the assistant",
    ),
    "two questions": (
        None,
        [[*golden.messages("a"), *golden.messages("b")]],
        {},
        r"conversations\[0\]\[1\]\.role: 'user', expected 'assistant'",
    ),
    "an unknown role": (None, [[{"role": "system", "content": "a"}]], {}, r"\[0\]\.role: 'system', expected 'user'"),
    "no content": (None, [[{"role": "user"}]], {}, r"conversations\[0\]\[0\]: expected \{'role'"),
    "content of numbers": (None, [[{"role": "user", "content": 3}]], {}, r"content: expected text, got int"),
    "an answered prompt": (
        None,
        [golden.messages("a", "b")],
        {"labels": False},
        "must end with a message of the user for generation",
    ),
    "a string to train on": (
        None,
        ["[INST] a [/INST]"],
        {"labels": True},
        "a string is an open prompt and has no answer",
    ),
    "an unknown format": (
        None,
        [golden.messages("a")],
        {"format": "chatml"},
        "format: 'chatml' is unknown; choose one of minigpt4-caption",
    ),
    "words without a prompt": (
        None,
        [golden.messages("what?", "b")],
        {"format": "minigpt4-caption"},
        "has no prompt, so a user message may hold only",
    ),
    "an unknown side": (
        None,
        [golden.messages("a")],
        {"padding_side": "top"},
        "padding_side: 'top'; choose left or right",
    ),
    "an over-long prompt": (
        None,
        [golden.messages("dogs " * 2000)],
        {},
        r"conversations\[0\]: \d+ tokens, more than max_length 1024; shorten it",
    ),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_malformed_conversations(kind):
    images, conversations, options, message = CONVERSATIONS[kind]
    with pytest.raises(ValueError, match=message):
        golden.processor("v2")(images, conversations, **options)


def test_missing_processor_config(tmp_path):
    with pytest.raises(ValueError, match=r"processor_config\.json: cannot be read as a processor"):
        MiniGPTProcessor.from_pretrained(tmp_path)


# Model inputs.


def test_placeholder_count_mismatch():
    model = golden.model("v2")
    batch = golden.processor("v2")(torch.zeros(1, 3, 112, 112), [golden.messages(IMAGE + "a", "b")])
    with pytest.raises(ValueError, match=r"16 image placeholders, but 2 images need 32 \(2 x 16\)"):
        model(batch["input_ids"], pixel_values=torch.zeros(2, 3, 112, 112))
    with pytest.raises(ValueError, match=r"16 image placeholders, but 0 images need 0"):
        model.generate(batch["input_ids"], max_new_tokens=1)


def test_pixels_of_wrong_size():
    with pytest.raises(ValueError, match=r"pixel_values: expected \(images, 3, 112, 112\), got \(1, 3, 56, 56\)"):
        golden.model("v2").get_image_features(torch.zeros(1, 3, 56, 56))


def test_features_of_wrong_width():
    ids = torch.full((1, 16), golden.model("v2").config.image_token_id)
    with pytest.raises(ValueError, match="image_features: width 64, expected 256"):
        golden.model("v2")(ids, image_features=torch.zeros(1, 16, 64))


def test_prompt_beyond_max_positions():
    with pytest.raises(ValueError, match="1025 tokens, more than the language model's 1024 positions"):
        golden.model("v2").generate(torch.full((1, 1025), 5), max_new_tokens=1)


def test_malformed_saved_model(tmp_path):
    golden.model("v2").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["projection.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys: projection\.bias"):
        MiniGPTForConditionalGeneration.from_pretrained(tmp_path)
    truncate(tmp_path / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be loaded"):
        MiniGPTForConditionalGeneration.from_pretrained(tmp_path)
