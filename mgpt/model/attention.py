"""`varlen`: an attention implementation for packed rows that never builds a mask and does no work between samples.

On CUDA it is torch's own variable-length flash attention; elsewhere one causal call of `scaled_dot_product_attention` a sample. Named as
`attn_implementation="varlen"`, with the bounds of `mgpt.data.packing.sequence_bounds`; without bounds (rows that are not packed, the
tower, generation) it is SDPA.

Letters: H heads, T positions of the packed row, D a head's width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "varlen"


def varlen_attention(
    module: Any, query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, T, H, D) and no weights. `cu_seq_lens_q` are the samples' bounds (samples + 1), `max_length_q`
    the longest sample.
    """
    bounds = options.get("cu_seq_lens_q")
    if bounds is None:
        return sdpa_attention_forward(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, **options)
    heads = (query_1HTD, key_1HTD, value_1HTD)
    if query_1HTD.is_cuda:
        return _flash(*heads, bounds, options["max_length_q"], options.get("scaling")), None
    return _each_sample(*heads, bounds.diff().tolist(), options.get("scaling")), None


def _flash(query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_THD, key_THD, value_THD = (heads[0].transpose(0, 1) for heads in (query_1HTD, key_1HTD, value_1HTD))
    causal = {"window_size": (-1, 0), "enable_gqa": query_1HTD.shape[1] != key_1HTD.shape[1]}
    mixed: Any = varlen_attn(query_THD, key_THD, value_THD, bounds, bounds, longest, longest, scale=scale, **causal)  # type: ignore[arg-type]
    return mixed[None]


def _each_sample(query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, sizes: list[int], scale: float | None) -> Tensor:
    # In float32: torch 2.13's gradient of attention in bf16 takes 2.5 times as long on a CPU, the casts included.
    queries, keys, values = (heads.float().split(sizes, dim=2) for heads in (query_1HTD, key_1HTD, value_1HTD))
    how: dict[str, Any] = {"is_causal": True, "scale": scale, "enable_gqa": query_1HTD.shape[1] != key_1HTD.shape[1]}
    mixed = [functional.scaled_dot_product_attention(*part, **how) for part in zip(queries, keys, values, strict=True)]
    return torch.cat(mixed, dim=2).transpose(1, 2).to(query_1HTD.dtype)


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
