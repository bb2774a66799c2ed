"""Inputs, masks and the loss of the language model.

Letters in names: B rows, L positions of a row, D width, n supervised positions or image tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mgpt.models import attention
from mgpt.models.kernels import fused_ops

IGNORE_INDEX = -100
MAX_LOGITS_BYTES = 1 << 30  # of float32 logits held at once; the published stages need a tenth of it
# Architectures that apply more than the head to get logits; their own forward is used then.
_SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def scatter_image_features(
    embeds_BLD: torch.Tensor, is_image_BL: torch.Tensor, images_nD: torch.Tensor
) -> torch.Tensor:
    """Writes n image tokens to the n marked positions, in reading order.

    Equals `masked_scatter`, whose gradient takes four times as long on a CPU. Reads nothing back from the device.
    """
    index = is_image_BL.flatten().cumsum(0).sub(1).clamp(min=0)
    return torch.where(is_image_BL[:, :, None], images_nD.index_select(0, index).view_as(embeds_BLD), embeds_BLD)


def supervised_positions(labels_BL: torch.Tensor) -> torch.Tensor:
    """Returns the positions (n,) of the flattened rows whose next token is supervised, on the labels' device."""
    return functional.pad(labels_BL[:, 1:].ne(IGNORE_INDEX), (0, 1)).flatten().nonzero().squeeze(1)


def supervised_rows(values_BLD: torch.Tensor, labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values (n, width) at positions whose next token is supervised, and those tokens (n,).

    Labels may stay on the CPU, so that nothing is read back from the device.
    """
    positions = supervised_positions(labels_BL)
    rows = values_BLD.flatten(0, 1)[positions.to(values_BLD.device, non_blocking=True)]
    return rows, labels_BL.flatten()[positions + 1].to(values_BLD.device, non_blocking=True)


def logits_loss(logits_nV: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """Computes the summed cross-entropy in float32."""
    return functional.cross_entropy(logits_nV.float(), targets_n, reduction="sum")


def head_loss(head: Any, rows_nD: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """Computes `logits_loss` of a head's outputs.

    On CUDA, logits larger than MAX_LOGITS_BYTES are computed in chunks by Liger's fused kernel. It reads from the
    device, and saves nothing where logits are small (benchmarks/results/gpu_step.json).
    """
    ops = fused_ops(rows_nD)
    # A head with an adapter or quantised weights is more than one matrix.
    is_plain = type(head) is nn.Linear and head.weight.is_floating_point()
    if ops is None or not is_plain or 4 * len(rows_nD) * len(head.weight) < MAX_LOGITS_BYTES:
        return logits_loss(head(rows_nD), targets_n)
    rows = rows_nD.to(head.weight.dtype)
    apply = ops.LigerFusedLinearCrossEntropyFunction.apply
    total: torch.Tensor = apply(rows, head.weight, targets_n, head.bias, None, IGNORE_INDEX, 0.0, 0.0, "sum")[0]
    return total


def has_plain_head(config: Any) -> bool:
    """Returns whether logits are hidden states times the output embeddings, without scaling or soft-capping."""
    return not any(getattr(config, name, None) not in (None, 1.0) for name in _SCALED_HEADS)


def convert_attention_mask(mask: Any, dtype: torch.dtype, implementation: str | None) -> Any:
    """Converts an attention mask to the form that the language model takes.

    (batch, length) masks are returned as they are. (batch, length, length) and (batch, 1, length, length) masks state
    which query attends to which key, causal order included, as booleans or 0/1; they become boolean for sdpa and
    additive for eager attention. A four-dimensional float mask is taken as additive.
    """
    if not isinstance(mask, torch.Tensor) or mask.ndim == 2:
        return mask  # None, one flag per token, or a block mask of flex attention
    mask = mask[:, None] if mask.ndim == 3 else mask
    if mask.is_floating_point():
        return mask.to(dtype)
    allowed = mask.bool()
    if implementation in ("sdpa", attention.NAME):
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(~allowed, torch.finfo(dtype).min)


def repair_generation_config(settings: Any) -> None:
    """Turns sampling on where only sampling settings are given, as in published Vicuna.

    transformers refuses to save such a model otherwise. `generate` of this project stays greedy by default.
    """
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def pad_left(embeds_BLD: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves every row's padding to its left end, where generation needs it; the order of attended positions is kept."""
    order = mask_BL.long().argsort(dim=1, stable=True)
    return embeds_BLD.gather(1, order[:, :, None].expand_as(embeds_BLD)), mask_BL.gather(1, order)
