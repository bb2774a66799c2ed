"""The golden cases: the original code's results within float32 accuracy."""

from __future__ import annotations

import pytest
import torch

from mgpt.conversion.key_mapping import original_name
from tests.fixtures import golden_cases as golden

CASES = [
    ("v1", "instruction"),
    ("v1", "stage2_promptlist"),
    ("v2", "single_turn"),
    ("v2", "multi_turn"),
    ("v2", "text_only"),
]
TOLERANCE = 1e-5  # measured: at most 2.4e-6


@pytest.mark.parametrize(("version", "name"), [*CASES, ("v1", "generate"), ("v2", "generate")])
def test_image_features(version, name):
    _, tensors = golden.case(version, name)
    pixels = tensors.get("input.image", tensors.get("input.images"))
    if pixels is None:
        assert name == "text_only"
        return
    model = golden.model(version)
    with torch.no_grad():
        features = model.get_image_features(pixels)
        hidden = model.vision_tower(pixels).last_hidden_state
    assert (features - tensors["output.image_embeds"]).abs().max() < TOLERANCE
    assert (hidden - tensors["output.ln_vision"]).abs().max() < TOLERANCE


@pytest.mark.parametrize(("version", "name"), CASES)
def test_logits_labels_and_loss(version, name):
    texts, tensors = golden.case(version, name)
    batch = golden.processor(version)(tensors.get("input.image"), golden.conversations(texts))
    with torch.no_grad():
        out = golden.model(version)(**batch)
    mask, their_mask = batch["attention_mask"], tensors["output.attention_mask"]
    assert mask.sum(1).tolist() == their_mask.sum(1).tolist()
    for ours, theirs in golden.same_rows(batch["labels"], mask, tensors["output.targets"], their_mask):
        assert ours.tolist() == theirs.tolist()
    for ours, theirs in golden.same_rows(out.logits, mask, tensors["output.logits"], their_mask):
        assert (ours - theirs).abs().max() < TOLERANCE
    assert abs(out.loss - tensors["output.loss"]) < TOLERANCE


@pytest.mark.parametrize(("version", "name"), CASES)
def test_gradients(version, name):
    texts, tensors = golden.case(version, name)
    model = golden.new_model(version)
    batch = golden.processor(version)(tensors.get("input.image"), golden.conversations(texts))
    model(**batch, return_logits=False).loss.backward()
    without = set()
    for ours, parameter in model.trainable_parameters().items():
        theirs = original_name(ours, lora=version == "v2")
        if parameter.grad is None:
            without.add(theirs)
            continue
        expected = tensors[f"output.grads.{theirs}"]
        assert (parameter.grad - expected).abs().max() / expected.abs().max() < TOLERANCE, ours
    assert without == set(texts["output.no_grad_params"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_greedy_ids_from_whole_prompts(version):
    texts, tensors = golden.case(version, "generate")
    batch = golden.processor(version)(tensors["input.images"], texts["input.texts"])
    assert torch.equal(batch["attention_mask"], tensors["output.gen_attention_mask"].long())
    ids = golden.model(version).generate(**batch, max_new_tokens=texts["input.max_new_tokens"])
    assert torch.equal(ids, tensors["output.gen_new_ids"])


def test_greedy_ids_from_messages():
    """The format adds the two BOS and the single space of the original's conversation."""
    texts, tensors = golden.case("v2", "generate")
    questions = [text.removeprefix("<s>[INST] ").removesuffix(" [/INST]") for text in texts["input.texts"]]
    batch = golden.processor("v2")(tensors["input.images"], [golden.messages(question) for question in questions])
    assert torch.equal(golden.model("v2").generate(**batch, max_new_tokens=16), tensors["output.gen_new_ids"])


@pytest.mark.parametrize(("version", "name"), [*CASES, ("v1", "generate"), ("v2", "generate")])
def test_tokenizer_calls(version, name):
    """Each segment has the ids that were recorded; the first one for generation also has the BOS."""
    texts, _ = golden.case(version, name)
    tokenizer = golden.processor(version).tokenizer
    for segments, recorded in texts["output.tokenizer_calls"]:
        for segment, ids in zip([segments] if isinstance(segments, str) else segments, recorded, strict=True):
            ours = tokenizer(segment, add_special_tokens=False).input_ids
            padding = [305] * (len(ids) - len(ours))
            assert ids in (ours + padding, [1, *ours])
