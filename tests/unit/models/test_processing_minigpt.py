"""The processor: ids against SentencePiece itself, pixels against the original's arithmetic."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentencepiece import SentencePieceProcessor

from mgpt.models import PROMPT_FORMATS, MiniGPTImageProcessor
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny
from tests.fixtures.reference import original_ids

SPECIALS = ("<s>", "</s>", "<unk>")
AWKWARD = [
    *SPECIALS,
    " ",
    "  ",
    "\n",
    "\t",
    "$$",
    "###",
    "<Img>",
    "</Img>",
    "<ImageHere>",
    "[INST]",
    "[/INST]",
    "a",
    "the man",
    "é",
    "日本",
    "🙂",
    "{<12><34>}",
    "▁",
    "<pad>",
    "<0x0A>",
    "!@#",
    "\u200b",
    "\u00a0",
    "ﬁ",
    "\r\n",
    "x$$y",
    "<",
    "s>",
    "</",
    "\x00",
    "\u0301e",
    "</s",
    "Describe",
]


BLOCKS = (
    (32, 127),
    (0x80, 0x250),
    (0x370, 0x600),
    (0x2000, 0x2600),
    (0x3000, 0x3100),
    (0x4E00, 0x4F00),
    (0x1F300, 0x1FA00),
    (0, 33),
)


def awkward(draw):
    return "".join(draw.choice(AWKWARD) for _ in range(draw.randint(0, 9)))


def foreign(draw):
    return "".join(chr(draw.randrange(*draw.choice(BLOCKS))) for _ in range(draw.randint(1, 30)))


def spaced(draw):
    """Returns words and special tokens between runs of spaces and line ends."""
    words = (
        "the",
        "man",
        "dogs",
        "lake",
        "[INST]",
        "[/INST]",
        "<s>",
        "</s>",
        "</s>[INST]",
        "<s>[INST]",
        "<Img>",
        "</Img>",
        "$$",
        "###",
    )
    return "".join(
        draw.choice(words) + draw.choice(("", " ", "  ", "\n", " \n ", "\t")) for _ in range(draw.randint(1, 12))
    )


@pytest.mark.parametrize("kind", [awkward, foreign, spaced])
def test_ids_of_awkward_strings(kind):
    """4,000 strings of each kind against the library that the original uses, in one call and one by one."""
    model = SentencePieceProcessor(model_file=str(golden.FOLDER / "v1" / "llm" / "tokenizer.model"))
    tokenizer = golden.processor("v1").tokenizer
    draw = random.Random(4)
    texts = [kind(draw) for _ in range(4000)]
    ours = tokenizer(texts, add_special_tokens=False).input_ids
    assert [text for text, ids in zip(texts, ours, strict=True) if ids != original_ids(model, text)] == []
    assert [
        text
        for text, ids in zip(texts[:200], ours, strict=False)
        if ids != tokenizer(text, add_special_tokens=False).input_ids
    ] == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_ids_of_any_text(text):
    model = SentencePieceProcessor(model_file=str(golden.FOLDER / "v1" / "llm" / "tokenizer.model"))
    assert golden.processor("v1").tokenizer(text, add_special_tokens=False).input_ids == original_ids(model, text)


def test_recorded_ids():
    recorded = json.loads((golden.FOLDER / "tokenizer_ids.json").read_text())
    tokenizer = golden.processor("v2").tokenizer
    for kind, with_specials in (("nospecial", False), ("special", True)):
        for text, ids in recorded[kind].items():
            assert tokenizer(text, add_special_tokens=with_specials).input_ids == ids, text


def test_decoding_matches_the_original():
    model = SentencePieceProcessor(model_file=str(golden.FOLDER / "v1" / "llm" / "tokenizer.model"))
    tokenizer, draw = golden.processor("v1").tokenizer, random.Random(5)
    for ids in (original_ids(model, foreign(draw)) for _ in range(500)):
        assert tokenizer.decode(ids) == model.decode(ids)


def test_invalid_bytes_become_replacement_characters():
    """For the first byte of an é and an N, the original keeps the N; tokenizers replaces the whole run of bytes."""
    model = SentencePieceProcessor(model_file=str(golden.FOLDER / "v1" / "llm" / "tokenizer.model"))
    ids = [model.piece_to_id(piece) for piece in ("<0xC3>", "<0x4E>")]
    assert model.decode(ids) == "\ufffdN"
    assert golden.processor("v1").tokenizer.decode(ids) == "\ufffd\ufffd"


def test_turn_separator_of_the_original_is_text():
    """The original joins turns with `!@#` and splits there; here it is plain text of an answer."""
    processor = golden.processor("v2")
    labels = processor(None, [golden.messages("what?", "a !@# man")])["labels"][0]
    assert labels[labels != -100].tolist() == processor.tokenizer("a !@# man</s>", add_special_tokens=False).input_ids


def test_multi_turn_prompt_matches_training():
    """Every earlier answer is a separate, closed segment; each question starts with `<s>`."""
    processor = golden.processor("v2")
    ids = processor(None, [golden.messages("what?", "a man", "where?")])["input_ids"][0].tolist()
    segments = ("<s>[INST] what? [/INST]", "a man</s>", "<s>[INST] where? [/INST]")
    assert ids == [
        1,
        *(one for text in segments for one in processor.tokenizer(text, add_special_tokens=False).input_ids),
    ]


def original_pixels(image, side):
    """Computes blip_processors.py:96-140 in numpy: Pillow's bicubic resize to a square, ToTensor, Normalize."""
    resized = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), dtype=np.uint8)
    unit = np.transpose(resized, (2, 0, 1)).astype(np.float32) / np.float32(255)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]
    return torch.from_numpy((unit - mean) / std)


@pytest.mark.parametrize("size", [(40, 30), (1, 1), (7, 300), (56, 56), (500, 333)])
def test_pixels_match_the_original(size):
    image = tiny.image(2, *size)
    assert torch.equal(golden.processor("v1").image_processor(image).pixel_values[0], original_pixels(image, 56))


MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16")


@pytest.mark.parametrize("side", [224, 448])
@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_every_mode(mode, side):
    """Greyscale, palette, transparent, CMYK and 16-bit images are converted by Pillow's RGB, as in the original."""
    for seed, (width, height) in enumerate(((640, 427), (33, 500), (1, 2))):
        colours = tiny.image(seed, width, height)
        deep = np.asarray(colours)[:, :, 0].astype(np.uint16) * 3 if mode == "I;16" else None
        image = colours.convert(mode) if deep is None else Image.fromarray(deep)
        assert image.mode == mode
        assert torch.equal(MiniGPTImageProcessor(side)(image).pixel_values[0], original_pixels(image, side))


def test_image_forms_are_equivalent(tmp_path):
    image = tiny.image(2)
    image.save(tmp_path / "image.png")
    processor = MiniGPTImageProcessor(32)
    expected = processor(image).pixel_values
    for form in (
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        (tmp_path / "image.png").read_bytes(),
        np.asarray(image),
        [image],
        expected[0],
    ):
        assert torch.equal(processor(form).pixel_values, expected)
    assert processor([]).pixel_values.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_encoded_colour_modes(mode):
    stream = io.BytesIO()
    image = tiny.image(2).convert(mode)
    image.save(stream, "TIFF")
    assert torch.equal(
        MiniGPTImageProcessor(32)(stream.getvalue()).pixel_values,
        MiniGPTImageProcessor(32)(image.convert("RGB")).pixel_values,
    )


def test_caption_format():
    """MiniGPT-4's pretraining has no prompt: image, caption, newline."""
    processor = golden.processor("v1")
    pieces = {
        "caption only": golden.messages("x", "a man")[1:],
        "image message": golden.messages("<Img><ImageHere></Img> ", "a man"),
        "bare": golden.messages("<ImageHere>", "a man"),
    }
    for conversation in pieces.values():
        batch = processor([tiny.image(0)], [conversation], format="minigpt4-caption")
        image = [processor.image_token_id] * 32
        assert batch["input_ids"][0].tolist() == [1, *image, 263, 365, 13]
        assert batch["labels"][0].tolist() == [-100] * 33 + [263, 365, 13]


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_only_answers_are_supervised(name):
    processor = golden.processor("v1")
    conversation = golden.messages("<Img><ImageHere></Img>" + ("" if name == "minigpt4-caption" else " what?"), "a man")
    batch = processor([tiny.image(0)], [conversation], format=name)
    supervised = batch["labels"][0] != -100
    answer = processor.tokenizer("a man" + PROMPT_FORMATS[name].end, add_special_tokens=False).input_ids
    assert batch["input_ids"][0, supervised].tolist() == answer
    assert supervised[-len(answer) :].all()


def test_wrapped_text_is_not_wrapped_twice():
    processor = golden.processor("v1")
    bare, whole = "<Img><ImageHere></Img> a", "###Human: <Img><ImageHere></Img> a ###Assistant: "
    for more in ([], ["yes"]):
        one, other = (processor(None, [golden.messages(text, *more)])["input_ids"] for text in (bare, whole))
        assert torch.equal(one, other)


def test_equivalent_call_forms():
    processor, image = golden.processor("v2"), tiny.image(0)
    conversation = golden.messages("<Img><ImageHere></Img> a", "b")
    forms = [
        processor(image, conversation),
        processor([image], [conversation]),
        processor([[image]], [conversation]),
        processor(images=[image], conversations=[conversation]),
    ]
    assert all(
        torch.equal(form["input_ids"], forms[0]["input_ids"])
        and torch.equal(form["pixel_values"], forms[0]["pixel_values"])
        for form in forms
    )
    mixed = processor([None, [image]], [golden.messages("a", "b"), conversation])
    assert mixed["pixel_values"].shape[0] == 1
    parts = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
    ]
    assert torch.equal(processor(image, parts)["input_ids"], forms[0]["input_ids"])


def test_padding_sides():
    processor = golden.processor("v2")
    training = processor(None, [golden.messages("a", "b"), golden.messages("a longer one", "b")])
    prompts = processor(None, [golden.messages("a"), golden.messages("a longer one")])
    assert (training["attention_mask"][0, 0], training["attention_mask"][0, -1]) == (1, 0)
    assert (prompts["attention_mask"][0, 0], prompts["attention_mask"][0, -1]) == (0, 1)
    assert "labels" not in prompts
    assert (training["labels"][training["attention_mask"] == 0] == -100).all()


def test_images_in_a_later_turn():
    """The original treats `<ImageHere>` in later turns as text; here it is an image."""
    processor = golden.processor("v2")
    conversation = golden.messages("<Img><ImageHere></Img> a", "b", "<Img><ImageHere></Img> and here?", "c")
    ids = processor([tiny.image(0), tiny.image(1)], [conversation])["input_ids"]
    assert (ids == processor.image_token_id).sum() == 32


def test_answers_are_cut_at_the_end_symbol():
    processor = golden.processor("v1")
    row = processor.tokenizer("a man### what###", add_special_tokens=False).input_ids
    stop = [*processor.tokenizer("a man", add_special_tokens=False).input_ids, 2]
    width = max(len(row), len(stop))
    ids = torch.tensor(
        [
            row + [2] * (width - len(row)),
            stop + [2] * (width - len(stop)),
            processor.tokenizer("a " * 50, add_special_tokens=False).input_ids[:width],
        ]
    )
    texts = processor.answers(ids)
    assert texts[:2] == [("a man", True), ("a man", True)]
    assert not texts[2][1]
