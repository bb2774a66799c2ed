"""The language model's side: LoRA, the head on supervised positions only, masks and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mgpt.models import attention
from mgpt.models.configuration_minigpt import LoraSpec
from mgpt.models.kernels import fused

IGNORE_INDEX = -100
WHOLE_LOGITS_BYTES = 1 << 30  # of float32 logits; those of the published stages take a tenth of it
# Architectures whose forward does more to the logits than the head; their own forward is used then.
_SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def add_lora(language_model: nn.Module, lora: LoraSpec) -> None:
    """Inject peft's LoRA in place (adapter "default", bias none): A at peft's Kaiming start, B zero, both float32.

    Raises ValueError when no module carries a target's name.
    """
    from peft import LoraConfig, inject_adapter_in_model

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
        raise ValueError(
            f"lora.target_modules: {', '.join(lora.target_modules)} not found in {type(language_model).__name__} ({error})"
        ) from error
    for name, parameter in language_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def place_images(embeds_BLD: torch.Tensor, is_image_BL: torch.Tensor, images_nD: torch.Tensor) -> torch.Tensor:
    """The n image tokens in the n marked places, in reading order. As `masked_scatter`, whose gradient takes four times as long on a CPU;
    no value is read back from a device.
    """
    numbers = is_image_BL.flatten().cumsum(0).sub(1).clamp(min=0)
    return torch.where(is_image_BL[:, :, None], images_nD.index_select(0, numbers).view_as(embeds_BLD), embeds_BLD)


def supervised_places(labels_BL: torch.Tensor) -> torch.Tensor:
    """Where, in the flattened rows, the next token is supervised: (n,), where the labels are."""
    return functional.pad(labels_BL[:, 1:].ne(IGNORE_INDEX), (0, 1)).flatten().nonzero().squeeze(1)


def supervised_rows(values_BLD: torch.Tensor, labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows (n, width) whose next token is supervised, and those tokens (n,).

    Labels may stay on the CPU: then the places are found there and no value is read back from the device.
    """
    places = supervised_places(labels_BL)
    rows = values_BLD.flatten(0, 1)[places.to(values_BLD.device, non_blocking=True)]
    return rows, labels_BL.flatten()[places + 1].to(values_BLD.device, non_blocking=True)


def logits_loss(logits_nV: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, summed, in float32."""
    return functional.cross_entropy(logits_nV.float(), targets_n, reduction="sum")


def head_loss(head: Any, rows_nD: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """`logits_loss` of a head's rows. On CUDA, logits too large to stand there whole are made and used up in parts by a fused kernel: it
    reads from the device, and gives nothing where they are small (benchmarks/results/gpu_step.json)."""
    kernels = fused(rows_nD)
    known = (
        type(head) is nn.Linear and head.weight.is_floating_point()
    )  # an adapter's or a quantised head is more than its weight
    if kernels is None or not known or 4 * len(rows_nD) * len(head.weight) < WHOLE_LOGITS_BYTES:
        return logits_loss(head(rows_nD), targets_n)
    rows = rows_nD.to(head.weight.dtype)
    apply = kernels.LigerFusedLinearCrossEntropyFunction.apply
    total: torch.Tensor = apply(rows, head.weight, targets_n, head.bias, None, IGNORE_INDEX, 0.0, 0.0, "sum")[0]
    return total


def has_plain_head(config: Any) -> bool:
    """Whether logits are the output embeddings' product and nothing more."""
    return not any(getattr(config, name, None) not in (None, 1.0) for name in _SCALED_HEADS)


def attention_bias(mask: Any, dtype: torch.dtype, implementation: str | None) -> Any:
    """A mask as the language model takes it.

    (batch, length) masks pass. (batch, length, length) or (batch, 1, length, length) says which query may see which key: boolean or 0/1,
    the causal order included; it becomes boolean for sdpa and additive for eager attention. A float mask of four dimensions is additive
    already.
    """
    if not isinstance(mask, torch.Tensor) or mask.ndim == 2:
        return mask  # none, one flag a token, or a block mask of flex attention
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.is_floating_point():
        return mask.to(dtype)
    allowed = mask.bool()
    if implementation in ("sdpa", attention.NAME):
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(~allowed, torch.finfo(dtype).min)


def mend_generation(settings: Any) -> None:
    """Settings that only sampling reads, without sampling, as published Vicuna has them, are refused by transformers when a model is
    saved. Sampling is what they mean; `generate` is greedy all the same unless it is asked otherwise.
    """
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def check_ids(input_ids: torch.Tensor, is_image: torch.Tensor, vocabulary: int) -> None:
    """ValueError for an id that is neither an image placeholder nor in the embedding table; reads values, so for the CPU."""
    foreign = input_ids[~is_image & ((input_ids < 0) | (input_ids >= vocabulary))]
    if foreign.numel():
        raise ValueError(
            f"input_ids: {foreign[0].item()} is not in the vocabulary, 0 to {vocabulary - 1}; use this model's tokenizer"
        )


def check_shapes(embeds_BLD: torch.Tensor, mask: Any, labels_BL: torch.Tensor | None, cached: bool = False) -> None:
    """ValueError for a mask or labels of other rows than the input's. cached: the mask then also covers positions that are not in it."""
    rows = tuple(embeds_BLD.shape[:2])
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and not cached and tuple(mask.shape) != rows:
        raise ValueError(f"attention_mask: shape {tuple(mask.shape)}, expected {rows}, one flag a token")
    if labels_BL is not None and tuple(labels_BL.shape) != rows:
        raise ValueError(f"labels: shape {tuple(labels_BL.shape)}, expected {rows}, one label a token")


def pad_left(embeds_BLD: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move every row's padding to its left end, where generation needs it; the attended order is kept."""
    order = mask_BL.long().argsort(dim=1, stable=True)
    return embeds_BLD.gather(1, order[:, :, None].expand_as(embeds_BLD)), mask_BL.gather(1, order)
