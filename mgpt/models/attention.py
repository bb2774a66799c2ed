"""`varlen`: an attention implementation for packed rows that never builds a mask and does no work between samples.

On CUDA it is torch's own variable-length flash attention, in half precision; elsewhere, and of float32, one causal call of
`scaled_dot_product_attention` a sample. Named as `attn_implementation="varlen"`, with the bounds of
`mgpt.data.packing.attention_inputs`; without bounds (rows that are not packed, the tower, generation) it is SDPA.

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
    """transformers' attention interface: (1, T, H, D) and no weights. `cu_seq_lens_k` are the samples' bounds (samples + 1),
    `max_length_k` the longest sample; of the queries, a sample may have its last ones alone: `cu_seq_lens_q`, `max_length_q`.
    `key_sizes` and `query_sizes` are the same as numbers of tokens.
    """
    if options.get("cu_seq_lens_q") is None:
        return sdpa_attention_forward(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, **options)
    heads = (query_1HTD, key_1HTD, value_1HTD)
    flash = query_1HTD.is_cuda and query_1HTD.dtype in (torch.bfloat16, torch.float16)  # there is none of float32
    return (_flash if flash else _each_sample)(*heads, **options), None


def _flash(
    query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, scaling: float | None = None, **bounds: Any
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Squeezed, not indexed: the gradient of an index is a tensor of zeros with a copy in it.
    query_THD, key_THD, value_THD = (heads.squeeze(0).transpose(0, 1) for heads in (query_1HTD, key_1HTD, value_1HTD))
    places = [bounds[name] for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    causal: Any = {"window_size": (-1, 0)}  # counted from the samples' ends
    if query_1HTD.shape[1] != key_1HTD.shape[1]:
        causal["enable_gqa"] = True
    mixed: Any = varlen_attn(query_THD, key_THD, value_THD, *places, scale=scaling, **causal)
    return mixed[None]


def _each_sample(
    query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, scaling: float | None = None, **bounds: Any
) -> Tensor:
    # In float32, which autocast would undo: torch 2.13's gradient of attention in bf16 takes twice as long on a CPU, the casts included.
    sizes = [
        bounds.get(f"{side}_sizes") or bounds[f"cu_seq_lens_{side[0]}"].diff().tolist() for side in ("query", "key")
    ]
    queries = query_1HTD.float().split(list(sizes[0]), dim=2)
    keys, values = (heads.float().split(list(sizes[1]), dim=2) for heads in (key_1HTD, value_1HTD))
    how: dict[str, Any] = {"scale": scaling, "enable_gqa": query_1HTD.shape[1] != key_1HTD.shape[1]}
    with torch.autocast(query_1HTD.device.type, enabled=False):
        mixed = [_causal(*part, **how) for part in zip(queries, keys, values, strict=True)]
    return torch.cat(mixed, dim=2).transpose(1, 2).to(query_1HTD.dtype)


def _causal(query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, **how: Any) -> Tensor:
    """Attention of a sample's last positions to all before them."""
    asked, known = query_1HTD.shape[2], key_1HTD.shape[2]
    if asked == known:
        return functional.scaled_dot_product_attention(query_1HTD, key_1HTD, value_1HTD, is_causal=True, **how)
    sees = torch.ones(asked, known, dtype=torch.bool, device=query_1HTD.device).tril(known - asked)
    return functional.scaled_dot_product_attention(query_1HTD, key_1HTD, value_1HTD, attn_mask=sees, **how)


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
