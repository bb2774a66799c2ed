"""Fused layers give the same loss, gradients and tokens as the original ones, with less computation."""

import copy

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mgpt.data.packing import attention_inputs
from mgpt.models import MiniGPTForConditionalGeneration
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.models.language import supervised_rows
from mgpt.models.last_layer import positions_to_keep
from tests.fixtures import tiny_models as tiny

SIZES = (23, 9, 14, 5)
SUPERVISED = ((20, 21, 22), (2, 3, 7), (), (1, 2, 3, 4))  # at the end; two turns; none; all but the first


@pytest.fixture(scope="module")
def pair(backbones):
    """A model and its fused copy."""
    torch.set_num_threads(1)
    model = tiny.v2(backbones, attn_implementation="varlen")
    for module in model.modules():  # dropout would draw at other positions
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    fused = copy.deepcopy(model)
    fuse_llama_layers(fused.language_model)
    return model, fused


def packed_row():
    made = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 500, (1, sum(SIZES)), generator=made)
    labels, start = torch.full_like(ids, -100), 0
    for size, positions in zip(SIZES, SUPERVISED, strict=True):
        for position in positions:
            labels[0, start + position] = ids[0, start + position]
        start += size
    segments = torch.arange(1, len(SIZES) + 1).repeat_interleave(torch.tensor(SIZES))[None]
    positions = torch.cat([torch.arange(size) for size in SIZES])[None]
    return {"input_ids": ids, "labels": labels, "position_ids": positions} | attention_inputs(segments, "varlen")


def padded_rows():
    ids = torch.randint(5, 500, (3, 20), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def gradients(model, batch):
    model.zero_grad()
    loss, count = model.loss_sum(batch)
    loss.backward()
    flat = [
        parameter.grad.flatten().double() for name, parameter in model.trainable_parameters().items() if "lora" in name
    ]
    return float(loss.detach()), int(count), torch.cat(flat)


@pytest.mark.parametrize("batch", [packed_row(), padded_rows()], ids=["packed", "padded"])
def test_same_loss_and_gradients(pair, batch):
    (loss, count, plain), (fused_loss, fused_count, fused) = (gradients(model, batch) for model in pair)
    assert float(plain.norm()) > 1
    assert (fused_loss, fused_count) == (pytest.approx(loss, rel=1e-6), count)
    assert float((fused - plain).norm() / plain.norm()) <= 2e-6


def test_bf16_error_does_not_grow(pair):
    batch = packed_row()
    exact = gradients(pair[0], batch)[2]
    with torch.autocast("cpu", torch.bfloat16):
        plain, fused = (float((gradients(model, batch)[2] - exact).norm() / exact.norm()) for model in pair)
    assert 0 < fused <= 1.5 * plain


def test_packed_attention_on_cpu_is_float32(pair):
    """In bf16 its gradient would take twice as long."""
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile(record_shapes=True) as profile:
        pair[0].loss_sum(packed_row())
    events = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == "aten::_scaled_dot_product_flash_attention_for_cpu"
    ]
    assert len(events) == len(SIZES) * len(pair[0].language_model.get_decoder().layers)
    assert {event.dtypes()[0] for event in events} == {"float"}


def test_activation_checkpointing_is_exact(pair):
    batch, fused = packed_row(), pair[1]
    _, _, kept = gradients(fused, batch)
    fused.set_activation_checkpointing(language=True)
    _, _, recomputed = gradients(fused, batch)
    fused.set_activation_checkpointing()
    assert torch.equal(kept, recomputed)


def test_last_layer_computes_kept_positions_only(pair):
    seen = []
    layers = pair[1].language_model.get_decoder().layers
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
        for layer in layers
    ]
    pair[1].loss_sum(packed_row())
    for hook in hooks:
        hook.remove()
    # From the position before an answer to the sample's end; of a sample without an answer, its last position.
    assert seen == [sum(SIZES)] * (len(layers) - 1) + [4 + 8 + 1 + 5]


def test_positions_to_keep():
    labels = packed_row()["labels"]
    kept = positions_to_keep(labels, SIZES, torch.device("cpu"))
    assert kept.positions.tolist() == [*range(19, 23), *range(24, 32), 45, *range(46, 51)]
    assert kept.bounds["query_sizes"] == (4, 8, 1, 5)
    assert kept.bounds["cu_seq_lens_q"].tolist() == [0, 4, 12, 13, 18]
    positions = torch.arange(51.0)[None, :, None]
    (rows, targets), (expected_rows, expected) = (
        supervised_rows(positions[:, kept.positions], kept.labels),
        supervised_rows(positions, labels),
    )
    assert torch.equal(rows, expected_rows)
    assert torch.equal(targets, expected)


def test_kept_positions_stay_within_their_sample():
    labels = torch.tensor([[-100, -100, 5, 6, -100, 7]])
    kept = positions_to_keep(labels, (2, 2, 2), torch.device("cpu"))
    assert kept.positions.tolist() == [1, 2, 3, 4, 5]
    assert kept.bounds["query_sizes"] == (1, 2, 2)


def test_same_logits_and_tokens(pair):
    batch = padded_rows()
    del batch["labels"]
    with torch.no_grad():
        plain, fused = (model(**batch).logits for model in pair)
    assert torch.allclose(plain, fused, atol=1e-5)
    answers = [model.generate(**batch, max_new_tokens=6) for model in pair]
    assert torch.equal(*answers)


def test_weight_names_do_not_change(pair, backbones, tmp_path):
    model, fused = pair
    assert list(model.state_dict()) == list(fused.state_dict())
    fused.save_trainable(tmp_path / "weights")
    again = MiniGPTForConditionalGeneration.from_trainable(
        tmp_path / "weights", {part: backbones[part] for part in ("vision", "language")}
    )
    for name, parameter in fused.trainable_parameters().items():
        assert torch.equal(parameter, again.trainable_parameters()[name])


def test_disabled_adapters_stay_disabled(pair):
    batch = padded_rows()
    del batch["labels"]
    logits = []
    for model in pair:
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        with torch.no_grad():
            logits.append(model(**batch).logits)
        for layer in layers:
            layer.enable_adapters(True)
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_("lora_" in name)
    assert torch.allclose(*logits, atol=1e-5)


def test_other_architectures_are_not_changed():
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    other = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2))
    gelu = LlamaForCausalLM(LlamaConfig(**sizes, hidden_act="gelu"))
    before = [type(module) for module in other.modules()]
    fuse_llama_layers(other)
    fuse_llama_layers(gelu)
    assert [type(module) for module in other.modules()] == before
    assert type(gelu.model.layers[0].mlp).__name__ == "LlamaMLP"
    assert type(gelu.model.norm).__name__ == "FusedRMSNorm"
