"""The private names that `mgpt.models.compat` depends on.

If one of these tests fails after an upgrade of transformers or torch: find the new name in its source (see each
test), change mgpt/models/compat.py, and raise TESTED_TRANSFORMERS and the bounds in pyproject.toml.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mgpt.models import MiniGPTForConditionalGeneration, compat


def test_class_attributes_exist():
    """They are read in transformers/modeling_utils.py, when a model is built and loaded."""
    declared = [name for name in vars(compat.MiniGPTPreTrainedModel) if name.startswith(("_supports", "_keep"))]
    assert len(declared) == 4
    assert all(hasattr(PreTrainedModel, name) for name in declared)
    assert issubclass(MiniGPTForConditionalGeneration, compat.MiniGPTPreTrainedModel)


def test_attention_implementation_is_readable():
    """transformers/configuration_utils.py keeps it."""
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert compat.attention_implementation(model.config) == name


def test_assert_on_device():
    """On a CPU torch's assertion raises at once."""
    compat.assert_on_device(torch.tensor(True))
    with pytest.raises(RuntimeError):
        compat.assert_on_device(torch.tensor(False))
