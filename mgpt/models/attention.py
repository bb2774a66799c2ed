"""`varlen`: an attention implementation for packed rows that builds no mask and computes nothing between samples.

On CUDA in half precision it is torch's variable-length flash attention; otherwise one causal call of
`scaled_dot_product_attention` per sample. It is selected by `attn_implementation="varlen"` and takes the bounds of
`mgpt.data.packing.attention_inputs`; without bounds (rows that are not packed, the tower, generation) it is SDPA.

Letters in names: H heads, T positions of the packed row, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "varlen"


def varlen_attention(
    module: Any, query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Computes (1, T, H, D), by transformers' attention interface; returns no attention weights.

    options: `cu_seq_lens_k` (samples + 1,) and `max_length_k` bound the samples' keys. `cu_seq_lens_q` and
    `max_length_q` bound their queries, which may be a sample's last ones only. `key_sizes` and `query_sizes` are the
    same as tuples of numbers.
    """
    if options.get("cu_seq_lens_q") is None:
        return sdpa_attention_forward(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, **options)
    heads = (query_1HTD, key_1HTD, value_1HTD)
    flash = query_1HTD.is_cuda and query_1HTD.dtype in (torch.bfloat16, torch.float16)  # it does not support float32
    return (_flash if flash else _per_sample)(*heads, **options), None


def _flash(
    query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, scaling: float | None = None, **bounds: Any
) -> Tensor:
    # Squeezed, not indexed: the gradient of indexing allocates zeros and copies into them.
    query_THD, key_THD, value_THD = (heads.squeeze(0).transpose(0, 1) for heads in (query_1HTD, key_1HTD, value_1HTD))
    limits = [bounds[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    options: Any = {"window_size": (-1, 0)}  # causal, aligned to the samples' ends
    if query_1HTD.shape[1] != key_1HTD.shape[1]:
        options["enable_gqa"] = True
    mixed: Any = varlen_attn(query_THD, key_THD, value_THD, *limits, scale=scaling, **options)
    return mixed[None]


def _per_sample(
    query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, scaling: float | None = None, **bounds: Any
) -> Tensor:
    # float32 even under autocast: on a CPU, torch 2.13's attention gradient in bf16 takes twice as long, casts
    # included.
    query_sizes, key_sizes = (
        bounds.get(f"{side}_sizes") or bounds[f"cu_seq_lens_{side[0]}"].diff().tolist() for side in ("query", "key")
    )
    queries = query_1HTD.float().split(list(query_sizes), dim=2)
    keys, values = (heads.float().split(list(key_sizes), dim=2) for heads in (key_1HTD, value_1HTD))
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query_1HTD.shape[1] != key_1HTD.shape[1]}
    with torch.autocast(query_1HTD.device.type, enabled=False):
        mixed = [_causal(*sample, **options) for sample in zip(queries, keys, values, strict=True)]
    return torch.cat(mixed, dim=2).transpose(1, 2).to(query_1HTD.dtype)


def _causal(query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, **options: Any) -> Tensor:
    """Computes causal attention of a sample's last positions, as many as there are queries."""
    queries, keys = query_1HTD.shape[2], key_1HTD.shape[2]
    if queries == keys:
        return functional.scaled_dot_product_attention(query_1HTD, key_1HTD, value_1HTD, is_causal=True, **options)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query_1HTD.device).tril(keys - queries)
    return functional.scaled_dot_product_attention(query_1HTD, key_1HTD, value_1HTD, attn_mask=mask, **options)


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
