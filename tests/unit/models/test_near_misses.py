"""Input that is almost valid: sizes, weights of a wrong type, corrupt images, tensors of other shapes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mgpt.conversion.convert import convert_original
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTImageProcessor
from mgpt.models.backbones import load_language, pixel_statistics
from mgpt.models.tokenizer import load_tokenizer
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny

IMAGE = "<Img><ImageHere></Img> "


def assert_refused(tmp_path, message, **changes):
    out = tmp_path / "parent" / "ours"
    with pytest.raises(ValueError, match=message):
        convert_original("minigpt-v2", out=out, **{**golden.files("v2"), **changes})
    assert not out.parent.exists() or not list(out.parent.iterdir())


def with_part(name, **values):
    sizes = golden.sizes("v2")
    return {**sizes, name: {**sizes[name], **values}}


SIZES = {
    "no dict": ([1], "sizes: expected a dict, got list"),
    "a part that is no dict": ({**golden.sizes("v2"), "vit": 3}, r"sizes\.vit: expected a dict, got int"),
    "a number as text": (with_part("vit", width="64"), r"sizes\.vit\.width: '64' must be a whole number above 0"),
    "a misspelt name": (
        with_part("vit", dephth=3),
        r"sizes\.vit\.dephth: unknown; known are width, depth, heads, patch, mlp_ratio",
    ),
    "heads that do not divide": (with_part("vit", heads=5), r"sizes\.vit\.heads: 5 does not divide the width, 64"),
    "size not a multiple of the patch": (
        {**golden.sizes("v2"), "img": 113},
        r"sizes\.img: 113 is not a multiple of the patch size, 14",
    ),
    "no pixels": ({**golden.sizes("v2"), "img": 0}, r"sizes\.img: 0 must be a whole number of pixels"),
    "pixels as text": ({**golden.sizes("v2"), "pre_img": "x"}, r"sizes\.pre_img: 'x' must be a whole number of pixels"),
    "half a LoRA": ({**golden.sizes("v2"), "lora": {"r": 4}}, r"sizes\.lora\.alpha: missing"),
    "two mistakes at once": (with_part("vit", width=0, depth=-1), r"vit\.width: 0 must .*; sizes\.vit\.depth: -1 must"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_impossible_sizes(kind, tmp_path):
    sizes, message = SIZES[kind]
    assert_refused(tmp_path, message, sizes=sizes)


def test_null_sizes_are_ignored():
    """A recorded configuration may have entries for parts that the model lacks."""
    files = golden.files("v1")
    sizes = {**files["sizes"], "lora": None, "seed": 7}
    assert golden.from_original("minigpt4", **{**files, "sizes": sizes}).config.num_image_tokens == 32


LORA_A = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
RELEASED = {
    "whole numbers": (
        lambda state: state.update({"llama_proj.bias": torch.zeros(64, dtype=torch.int64)}),
        r"type of projection\.bias: torch\.int64",
    ),
    "a name that is a number": (
        lambda state: state.update({3: torch.zeros(1)}),
        "expected a dict of tensors.* found 3: ",
    ),
    "a tensor without values": (
        lambda state: state.update({"llama_proj.bias": torch.zeros(64, device="meta")}),
        r"'llama_proj\.bias': a torch\.strided tensor on meta",
    ),
    "a sparse tensor": (
        lambda state: state.update({"llama_proj.weight": state["llama_proj.weight"].to_sparse()}),
        r"'llama_proj\.weight': a torch\.sparse_coo tensor",
    ),
    "both spellings": (
        lambda state: state.update({LORA_A.replace("A.weight", "A.default.weight"): state[LORA_A]}),
        r"both spellings of one weight: .*lora_A\.default\.weight; remove one",
    ),
}


@pytest.mark.parametrize("kind", RELEASED)
def test_weights_of_wrong_type(kind, tmp_path):
    change, message = RELEASED[kind]
    content = torch.load(golden.files("v2")["released"], weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "released.pth")
    assert_refused(tmp_path, message, released=tmp_path / "released.pth")


def test_non_finite_language_model(tmp_path):
    shutil.copytree(golden.FOLDER / "v2" / "llm", tmp_path / "llm")
    state = torch.load(tmp_path / "llm" / "pytorch_model.bin", weights_only=True)
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    state["lm_head.weight"][0, 0] = float("-inf")
    torch.save(state, tmp_path / "llm" / "pytorch_model.bin")
    assert_refused(
        tmp_path, r"not finite .*: model\.layers\.1\.mlp\.up_proj\.weight, lm_head\.weight;", llm=tmp_path / "llm"
    )
    with pytest.raises(ValueError, match=r"not finite .*up_proj"):
        load_language(tmp_path / "llm", torch.float32)


def test_non_finite_saved_model(tmp_path):
    golden.model("v2").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["vision_tower.embeddings.class_embedding"] *= float("nan")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not finite .*vision_tower\.embeddings\.class_embedding"):
        MiniGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_language_model_pickle_with_code(tmp_path):
    shutil.copytree(golden.FOLDER / "v2" / "llm", tmp_path / "llm")
    torch.save({"model.norm.weight": tmp_path}, tmp_path / "llm" / "pytorch_model.bin")
    assert_refused(tmp_path, r"llm: cannot be loaded \(UnpicklingError", llm=tmp_path / "llm")


@pytest.mark.parametrize("missing", ["tokenizer.model", "pytorch_model.bin", "config.json"])
def test_incomplete_language_model_folder(missing, tmp_path):
    shutil.copytree(golden.FOLDER / "v2" / "llm", tmp_path / "llm")
    (tmp_path / "llm" / missing).unlink()
    message = {
        "tokenizer.model": "tokenizer.model: no such file",
        "pytorch_model.bin": "no .*bin",
        "config.json": "no config.json",
    }[missing]
    assert_refused(tmp_path, message, llm=tmp_path / "llm")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_truncated_tokenizer_file(name, tmp_path):
    from mgpt.models.tokenizer import save_tokenizer

    save_tokenizer(tiny.tokenizer(), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"not a JSON object|its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_malformed_pixel_statistics(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: no image_mean and image_std"):
        pixel_statistics(tmp_path)


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000", "DDS", "PCX", "SGI", "AVIF")


@pytest.mark.parametrize("format", FORMATS)
def test_corrupt_images_of_every_format(format):
    """Truncated or altered bytes are read, or refused with the image's position; Pillow's own errors are not raised."""
    import io

    stream = io.BytesIO()
    tiny.image(1, 80, 60).save(stream, format)
    whole, draw, read = stream.getvalue(), np.random.default_rng(3), MiniGPTImageProcessor(28)
    assert read(whole).pixel_values.shape == (1, 3, 28, 28)
    for number in range(40):
        altered = bytearray(whole[: draw.integers(len(whole))] if number % 2 else whole)
        for position in draw.integers(max(len(altered), 1), size=4) if altered else ():
            altered[position] = draw.integers(256)
        messages = []
        try:
            read([bytes(altered)])
        except ValueError as error:
            messages.append(str(error))
        assert all(message.startswith("images[0]: ") for message in messages)


def test_decompression_bomb():
    import io

    stream = io.BytesIO()
    Image.new("1", (20000, 20000)).save(stream, "PNG")
    with pytest.raises(ValueError, match=r"images\[0\]: cannot be read as an image .*exceeds limit"):
        MiniGPTImageProcessor(28)(stream.getvalue())


def test_non_finite_pixels():
    with pytest.raises(ValueError, match=r"images\[0\]: pixels that are not finite"):
        MiniGPTImageProcessor(28)(torch.full((3, 28, 28), float("nan")))


CONVERSATIONS = {
    "a number": (None, [1], {}, r"conversations\[0\]: expected a list of messages or a whole prompt, got 1"),
    "an empty conversation": (None, [[]], {}, r"conversations\[0\]: must end with a message of the user"),
    "half a surrogate pair": (
        None,
        [golden.messages("\ud800", "b")],
        {},
        r"conversations\[0\]\[0\]\.content: not valid Unicode",
    ),
    "half a surrogate pair in a prompt": (None, ["a \udc00"], {}, r"conversations\[0\]: not valid Unicode"),
    "a part without its text": (
        None,
        [[{"role": "user", "content": [{"type": "text"}]}]],
        {},
        "each text with its 'text'",
    ),
    "images of the wrong conversation": (
        [[tiny.image(0)], None],
        [golden.messages("a"), golden.messages(IMAGE + "a")],
        {},
        r"images: 1 \(per conversation: \[1, 0\]\) given, but .* marks \(per conversation: \[0, 1\]\)",
    ),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_malformed_conversations(kind):
    images, conversations, options, message = CONVERSATIONS[kind]
    with pytest.raises(ValueError, match=message):
        golden.processor("v2")(images, conversations, **options)


IDS = torch.tensor([[1, 5, 6]])
MARKS = torch.full((1, 16), 512)
PIXELS = torch.zeros(1, 3, 112, 112)
INPUTS = {
    "ids that are no integers": (
        {"input_ids": torch.zeros(1, 4)},
        r"input_ids: expected integers .* got \(1, 4\) of torch\.float32",
    ),
    "a row without a batch": (
        {"input_ids": torch.tensor([1, 2])},
        r"input_ids: expected integers of shape \(batch, length\), got \(2,\)",
    ),
    "an id beyond the vocabulary": (
        {"input_ids": torch.tensor([[1, 600]])},
        "input_ids: 600 is not in the vocabulary, 0 to 511",
    ),
    "an id below zero": ({"input_ids": torch.tensor([[1, -5]])}, "input_ids: -5 is not in the vocabulary"),
    "another model's mask": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 2)},
        r"attention_mask: shape \(1, 2\), expected \(1, 3\)",
    ),
    "another row's labels": (
        {"input_ids": IDS, "labels": torch.ones(1, 2).long()},
        r"labels: shape \(1, 2\), expected \(1, 3\)",
    ),
    "pixels and their features": (
        {"input_ids": MARKS, "pixel_values": PIXELS, "image_features": torch.zeros(1, 16, 256)},
        "pixel_values and image_features: .* give one of them",
    ),
    "too few features": (
        {"input_ids": MARKS, "image_features": torch.zeros(1, 8, 256)},
        r"image_features: shape \(1, 8, 256\), expected \(images, 16, 256\)",
    ),
    "one image over two rows": (
        {
            "input_ids": torch.cat(
                [torch.cat([MARKS, MARKS[:, :4]], 1), torch.cat([MARKS[:, :12], torch.ones(1, 8).long()], 1)]
            ),
            "pixel_values": PIXELS.repeat(2, 1, 1, 1),
        },
        r"input_ids hold \[20, 12\] image placeholders, row by row: not 16 for each image",
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_mismatched_tensors(kind):
    inputs, message = INPUTS[kind]
    with pytest.raises(ValueError, match=message):
        golden.model("v2")(**inputs)


def test_empty_prompt():
    with pytest.raises(ValueError, match="input_ids: the prompt is empty"):
        golden.model("v2").generate(torch.zeros(1, 0, dtype=torch.long))
