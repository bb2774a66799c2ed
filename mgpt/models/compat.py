"""Private names of transformers and torch that the model depends on, checked against the supported versions.

tests/unit/models/test_compat.py fails when one of them changes. `pyproject.toml` bounds transformers and peft at the
next minor version that these names were not checked with.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel

TESTED_TRANSFORMERS = "5.23"

if Version(transformers.__version__) < Version(TESTED_TRANSFORMERS):
    raise ImportError(
        f"transformers {transformers.__version__} is older than {TESTED_TRANSFORMERS}; "
        f"run pip install 'transformers>={TESTED_TRANSFORMERS}'"
    )


class MiniGPTPreTrainedModel(PreTrainedModel):
    """The class attributes by which transformers learns what a model supports; it has no public form of them."""

    # The language model and the tower choose their attention themselves, so every implementation is accepted.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Trained weights stay float32 on half-precision backbones: the original trains float32 adapters under autocast.
    _keep_in_fp32_modules_strict = ["projection", "lora_A", "lora_B"]


def attention_implementation(config: Any) -> str:
    """Returns the attention implementation in use. `set_attn_implementation` is public, its reader is not."""
    return config._attn_implementation


def assert_on_device(condition: torch.Tensor) -> None:
    """Fails later, on the device, if `condition` is false. A plain assert would make the host wait for the device."""
    torch._assert_async(condition)


def set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Makes a loaded layer an instance of a subclass with the same parameters; transformers offers no way to
    choose it.
    """
    module.__class__ = kind
