"""Packed rows give the same results as single rows, on the real model with random weights."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgpt.data.packing import attention_inputs, block_mask, dense_mask, pack_rows, plan_packs, sequence_bounds
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from tests.fixtures.training_data import make_backbones

IMAGE = "<Img><ImageHere></Img> "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    backbones = make_backbones(tmp_path_factory.mktemp("backbones"))
    model = MiniGPTForConditionalGeneration.from_backbones(**backbones, merge=4, lora={"r": 4, "lora_alpha": 8})
    torch.manual_seed(1)
    for name, parameter in model.trainable_parameters().items():
        if "lora_B" in name:  # initialized to zero, with which LoRA's A gets no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train(), MiniGPTProcessor.from_config(model.config, backbones["language"])


def talk(*turns):
    return [{"role": "user" if number % 2 == 0 else "assistant", "content": text} for number, text in enumerate(turns)]


SAMPLES = [
    ("one image", talk(IMAGE + "what is left of the circle", "a red square"), 1),
    ("text only", talk("count to 3", "1 2 3"), 0),
    (
        "multi-turn",
        talk(IMAGE + "describe this", "a green triangle is left", "where is the circle", "left of the square"),
        1,
    ),
    ("two images", talk(IMAGE + IMAGE + "what is", "a blue circle and a red triangle"), 2),
    ("short", talk("hi", "a"), 0),
]


def rows(processor):
    made = torch.Generator().manual_seed(5)
    images = [
        [
            Image.fromarray(torch.randint(0, 255, (64, 64, 3), generator=made, dtype=torch.uint8).numpy())
            for _ in range(count)
        ]
        for *_, count in SAMPLES
    ]
    return processor(
        images=images,
        conversations=[talk for _, talk, _ in SAMPLES],
        format="minigpt-v2",
        labels=True,
        padding_side="right",
    )


COUNTS = [count for *_, count in SAMPLES]


def gradients(model, batch):
    model.zero_grad()
    loss, count = model.loss_sum(batch)
    loss.backward()
    return (
        float(loss.detach()),
        int(count),
        torch.cat([parameter.grad.flatten() for parameter in model.trainable_parameters().values()]),
    )


def packed_batch(tensors, packs, implementation):
    packed = pack_rows(tensors, COUNTS, packs)
    kept = {name: packed[name] for name in ("input_ids", "labels", "position_ids", "pixel_values") if name in packed}
    return packed, kept | attention_inputs(packed["segment_ids"], implementation)


@contextmanager
def attention(model, implementation):
    before = model.language_model.config._attn_implementation
    model.language_model.set_attn_implementation(implementation)
    with torch.compiler.set_stance(
        "force_eager"
    ):  # compiling flex attention takes minutes on a CPU, and only the mask is tested
        yield
    model.language_model.set_attn_implementation(before)


def plans(tensors, implementation):
    """Returns a plan with one row; and one with several, if the implementation supports it."""
    lengths = tensors["attention_mask"].sum(1).tolist()
    return [plan_packs(lengths, COUNTS, 1000)] + (
        [plan_packs(lengths, COUNTS, 90)] if implementation in ("sdpa", "eager") else []
    )


@pytest.mark.parametrize(
    "implementation", ["sdpa", "eager", "varlen"]
)  # torch has no backward pass of flex attention on a CPU
def test_gradients_match_single_rows(model, implementation):
    model, processor = model
    tensors = rows(processor)
    one_loss, one_count, plain = gradients(model, tensors)
    assert float(plain.norm()) > 1
    with attention(model, implementation):
        for packs in plans(tensors, implementation):
            assert len(packs) < len(SAMPLES)
            loss, count, packed = gradients(model, packed_batch(tensors, packs, implementation)[1])
            assert count == one_count
            assert loss == pytest.approx(one_loss, rel=1e-6)
            assert float((packed - plain).norm() / plain.norm()) <= 1e-6


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention", "varlen"])
def test_logits_are_independent_of_packing(model, implementation):
    model, processor = model
    tensors = rows(processor)
    with torch.no_grad():
        alone = model(**{name: tensors[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits
    lengths = tensors["attention_mask"].sum(1).tolist()
    several = [[[0, 3], [1, 2, 4]]] if implementation not in ("flash_attention_2", "varlen") else []
    for packs in ([[0, 1, 2, 3, 4]], [[4, 2, 0, 3, 1]], *several):
        packed, batch = packed_batch(tensors, packs, implementation)
        del batch["labels"]
        with torch.no_grad(), attention(model, implementation):
            logits = model(**batch).logits
        for row, pack in enumerate(packs):
            for place, number in enumerate(pack, start=1):
                mine = logits[row][packed["segment_ids"][row] == place]
                assert torch.allclose(mine, alone[number, : lengths[number]], atol=1e-5)


def test_varlen_falls_back_to_sdpa(model):
    """Padded rows and generation use their masks."""
    model, processor = model
    tensors = rows(processor)
    expected = gradients(model, tensors)[2]
    prompts = {name: tensors[name][:2, :20].clone() for name in ("input_ids", "attention_mask")}
    prompts["input_ids"] = prompts["input_ids"].masked_fill(prompts["input_ids"] == model.config.image_token_id, 5)
    prompts["attention_mask"][0, :6] = 0
    tokens = model.generate(**prompts, max_new_tokens=4)
    with attention(model, "varlen"):
        assert torch.equal(gradients(model, tensors)[2], expected)
        assert torch.equal(model.generate(**prompts, max_new_tokens=4), tokens)


def test_masks_agree():
    segments = torch.tensor([[1, 1, 1, 2, 2, 3]])
    dense = dense_mask(segments)[0, 0]
    blocks = block_mask(segments)
    flex = torch.tensor(
        [
            [
                bool(blocks.mask_mod(torch.tensor(0), torch.tensor(0), torch.tensor(query), torch.tensor(key)))
                for key in range(6)
            ]
            for query in range(6)
        ]
    )
    assert torch.equal(dense, flex)
    bounds = sequence_bounds(segments)["cu_seq_lens_q"].tolist()
    varlen = torch.zeros(6, 6, dtype=torch.bool)
    for start, end in pairwise(bounds):
        varlen[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
    assert torch.equal(dense, varlen)
    assert sequence_bounds(segments)["max_length_q"] == 3


def test_padding_attends_to_itself():
    assert bool(dense_mask(torch.tensor([[1, 2, 0, 0]])).any(-1).all())


def test_first_tokens_are_no_targets(model):
    tensors = {
        "input_ids": torch.arange(1, 7).reshape(2, 3),
        "attention_mask": torch.ones(2, 3, dtype=torch.long),
        "labels": torch.arange(1, 7).reshape(2, 3),
    }
    assert pack_rows(tensors, [0, 0], [[0, 1]])["labels"].tolist() == [[-100, 2, 3, -100, 5, 6]]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(50, 200),
    st.integers(3, 8),
)
def test_plan_respects_budgets(samples, tokens, images):
    lengths, counts = [length for length, _ in samples], [count for _, count in samples]
    packs = plan_packs(lengths, counts, tokens, images)
    assert sorted(number for pack in packs for number in pack) == list(range(len(samples)))
    assert all(
        sum(lengths[number] for number in pack) <= tokens and sum(counts[number] for number in pack) <= images
        for pack in packs
    )
    fullest = sorted(sum(lengths[number] for number in pack) for pack in packs)
    assert (
        len(packs) == 1 or sum(counts) > 0 or fullest[0] + fullest[1] > tokens
    )  # the two emptiest rows do not fit in one


def test_sample_beyond_budget():
    with pytest.raises(ValueError, match="sample 1: 70 tokens and 0 images do not fit a row of 64 tokens"):
        plan_packs([10, 70], [0, 0], 64)


@pytest.mark.parametrize(
    ("segments", "implementation", "message"),
    [([[1, 0]], "flash_attention_2", "without padding"), ([[1]], "paged", "cannot run packed")],
)
def test_unsupported_rows(segments, implementation, message):
    with pytest.raises(ValueError, match=message):
        attention_inputs(torch.tensor(segments), implementation)
