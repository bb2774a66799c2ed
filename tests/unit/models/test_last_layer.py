"""The last feed-forward part at supervised positions only gives the same loss and gradients."""

from __future__ import annotations

import pytest
import torch

from mgpt.models import MiniGPTProcessor
from mgpt.models.last_layer import feed_forward
from tests.fixtures import tiny_models as tiny
from tests.fixtures.tiny_models import training_batch


@pytest.fixture(scope="module")
def made(backbones):
    model = tiny.v2(backbones).eval()  # without dropout, whose draws depend on the rows
    return model, training_batch(MiniGPTProcessor.from_config(model.config, backbones["language"]))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.trainable_parameters().values()])


def computed_rows(model, act):
    seen = []
    handle = feed_forward(model.language_model.get_decoder()).down_proj.register_forward_hook(
        lambda _m, inputs, _o: seen.append(inputs[0])
    )
    with handle:
        act()
    return [tuple(one.shape[:2]) for one in seen]


def test_same_loss_and_gradients(made):
    model, batch = made
    whole, pruned = model(**batch).loss, model(**batch, return_logits=False).loss
    assert torch.isclose(whole, pruned, rtol=1e-6)
    expected, found = gradients(model, whole), gradients(model, pruned)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_only_training_loss_is_pruned(made):
    model, batch = made
    supervised = int((batch["labels"][:, 1:] != -100).sum())
    assert computed_rows(model, lambda: model.loss_sum(batch)) == [(1, supervised)]
    assert computed_rows(model, lambda: model(**batch)) == [tuple(batch["labels"].shape)]


def test_activation_checkpointing_disables_pruning(made):
    model, batch = made
    expected = gradients(model, model.loss_sum(batch)[0])
    model.train().set_activation_checkpointing(language=True)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.eval()
    seen = computed_rows(model, lambda: model.loss_sum(batch)[0].backward())
    found = gradients(model, model.loss_sum(batch)[0])
    model.eval().set_activation_checkpointing()
    assert set(seen) == {tuple(batch["labels"].shape)}
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
