"""One model class for MiniGPT-4 and MiniGPT-v2, with its processor and backbones.

Names are imported on first use, so that a prompt format or a preset costs no torch import. Importing any class
registers all of them with transformers' `Auto*` classes: `from mgpt.models import MiniGPTProcessor` is enough.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgpt.models.configuration_minigpt import BackboneReference, MiniGPTConfig
    from mgpt.models.image_processing_minigpt import MiniGPTImageProcessor
    from mgpt.models.modeling_minigpt import MiniGPTForConditionalGeneration, MiniGPTOutput
    from mgpt.models.processing_minigpt import MiniGPTProcessor
    from mgpt.models.prompt_formats import PROMPT_FORMATS, PromptFormat

_MODULES = {
    "BackboneReference": "configuration_minigpt",
    "MiniGPTConfig": "configuration_minigpt",
    "PROMPT_FORMATS": "prompt_formats",
    "PromptFormat": "prompt_formats",
    "MiniGPTImageProcessor": "image_processing_minigpt",
    "MiniGPTForConditionalGeneration": "modeling_minigpt",
    "MiniGPTOutput": "modeling_minigpt",
    "MiniGPTProcessor": "processing_minigpt",
}

__all__ = [
    "PROMPT_FORMATS",
    "BackboneReference",
    "MiniGPTConfig",
    "MiniGPTForConditionalGeneration",
    "MiniGPTImageProcessor",
    "MiniGPTOutput",
    "MiniGPTProcessor",
    "PromptFormat",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name] != "prompt_formats":
        for module in ("modeling_minigpt", "processing_minigpt"):
            import_module(f"{__name__}.{module}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
