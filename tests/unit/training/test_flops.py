"""Counted FLOPs against those that torch executes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.training.batch import Batch, cut_packed
from mgpt.training.flops import StepFlops, peak_flops, sample_lengths
from tests.fixtures.training_data import make_backbones

QUESTION = "<Img><ImageHere></Img> what is left of the circle"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    backbones = make_backbones(tmp_path_factory.mktemp("backbones"))
    model = MiniGPTForConditionalGeneration.from_backbones(**backbones, merge=4, lora={"r": 4, "lora_alpha": 8}).train()
    return model, MiniGPTProcessor.from_config(model.config, backbones["language"])


def batch(processor, answers, images=True):
    question = QUESTION if images else "what is"
    conversations = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for answer in answers
    ]
    tensors = dict(processor(None, conversations, format="minigpt-v2"))
    if images:
        tensors["pixel_values"] = torch.randn(len(answers), 3, 64, 64)
    return Batch(tensors, tuple(map(str, range(len(answers)))))


def executed(model, tensors):
    """Returns FLOPs of matrix products, forward and backward: all but attention and the tower's patch embedding."""
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        model.loss_sum(tensors)[0].backward()
    return sum(
        flops for name, flops in counter.get_flop_counts()["Global"].items() if str(name) in ("aten.mm", "aten.addmm")
    )


def without_attention(model, one):
    count, tokens = StepFlops.of(model), model.config.num_patches + 1
    tower = model.config.vision_config
    pairs = sum(length**2 for length in sample_lengths(one)) * count.pair
    images = len(one.tensors.get("pixel_values", ()))
    return count([one]) - pairs - images * 4 * tokens**2 * tower.hidden_size * tower.num_hidden_layers


def test_count_matches_execution(made):
    model, processor = made
    one = batch(processor, ["a red square", "a red square"])
    assert without_attention(model, one) == executed(model, one.tensors)


def test_cached_images_cost_only_their_projection(made):
    model, processor = made
    one = batch(processor, ["a red square"])
    with torch.no_grad():
        features = model.encode_images(one.tensors["pixel_values"])
    rest = {name: value for name, value in one.tensors.items() if name != "pixel_values"}
    cached = Batch(rest | {"image_features": features}, one.ids)
    assert without_attention(model, cached) == executed(model, cached.tensors)
    assert StepFlops.of(model)([cached]) < StepFlops.of(model)([one])


def test_padding_and_packing_do_not_count(made):
    model, processor = made
    count, answers = StepFlops.of(model), ["a", "a green triangle is left of the red square", "a blue circle"]
    padded = batch(processor, answers)
    alone = [batch(processor, [answer]) for answer in answers]
    packed = cut_packed(padded.tensors, list(padded.ids), [1, 1, 1], 4, 400)
    assert len(packed) == 1
    assert count([padded]) == pytest.approx(count(alone)) == pytest.approx(count(packed))


def test_text_only_batch(made):
    model, processor = made
    count, text = StepFlops.of(model), batch(processor, ["a red square"], images=False)
    length, *_ = sample_lengths(text)
    supervised = int((text.tensors["labels"] != -100).sum())
    assert count([text]) == count.token * length + count.pair * length**2 + count.supervised * supervised


def test_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu")) is None
