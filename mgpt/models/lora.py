"""Low-rank adapters on the language model, by peft."""

from __future__ import annotations

from torch import nn

from mgpt.models.configuration_minigpt import LoraSpec


def add_lora(language_model: nn.Module, lora: LoraSpec) -> None:
    """Injects peft's LoRA in place (adapter "default", no bias), in float32; A is Kaiming-initialised, B zero.

    Raises ValueError when no module has a target's name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, which models without LoRA are spared

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, language_model, adapter_name="default")
    except ValueError as error:
        targets = ", ".join(lora.target_modules)
        raise ValueError(
            f"lora.target_modules: {targets} not found in {type(language_model).__name__} ({error})"
        ) from error
    for name, parameter in language_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
