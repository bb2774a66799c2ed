"""Fused LLaMA layers for training: the same functions and gradients with fewer passes over memory.

`fuse_llama_layers` changes a language model in place, from outside, before training; weights and their names stay as
they are. Whatever it does not know (another architecture, trained norms, disabled adapters, generation) runs as
before.

- Norms, rotary embeddings and SwiGLU keep fewer tensors for the backward pass and write into buffers they allocated.
  On CUDA they are one kernel each: torch's for norms, Liger's for the others (`mgpt.models.kernels`). Liger's kernels
  overwrite the outputs of the preceding matrix products, and SwiGLU's gradient overwrites its saved inputs, unnoticed
  by autograd; so nothing else may read those, and a graph allows one backward pass.
- LoRA's sum is part of its second matrix product.
- The last layer of a packed row computes queries and attention at kept positions only (`mgpt.models.last_layer`);
  keys and values stay whole.

Letters in names: R rows, L positions of a row, H heads, D width of a head, T width of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
)

from mgpt.models.compat import attention_implementation, set_class
from mgpt.models.kernels import fused_ops
from mgpt.models.last_layer import KeptPositions


def fuse_llama_layers(language_model: nn.Module) -> None:
    """Replaces the layers of a LLaMA model by their fused form, in place; other models stay as they are."""
    layers = getattr(language_model.get_decoder(), "layers", None)  # type: ignore[operator]
    if not layers or type(layers[-1]) is not LlamaDecoderLayer:
        return
    for module in language_model.modules():
        fused = _FUSED.get(type(module))
        if fused is not None and _is_supported(module):
            set_class(module, fused)
    set_class(layers[-1], PrunedDecoderLayer)


def _is_supported(module: nn.Module) -> bool:
    if isinstance(module, LlamaMLP):
        return module.config.hidden_act == "silu"
    return not isinstance(module, LoraLinear) or type(module.base_layer) is nn.Linear


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, hidden_RLT: Tensor, weight_T: Tensor, epsilon: float) -> Tensor:
        wide = hidden_RLT.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(wide.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden_RLT, weight_T, inverse)
        return (wide * inverse).mul_(weight_T).to(hidden_RLT.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight, inverse = ctx.saved_tensors
        wide, weighted = hidden.float(), gradients[0].float() * weight
        pull = torch.linalg.vecdot(weighted, wide)[..., None].mul_(inverse.pow(3)).div_(-wide.shape[-1])
        return weighted.mul_(inverse).addcmul_(wide, pull).to(hidden.dtype), None, None


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, heads_RLHD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotate(heads_RLHD, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotate(gradients[0], cosine, sine, -1), None, None


def _rotate(heads_RLHD: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    """Rotates each pair (i, i + D/2) by its position's angle; direction -1 rotates back.

    The tables hold each angle twice.
    """
    half = heads_RLHD.shape[-1] // 2
    rotated = heads_RLHD * cosine
    rotated[..., :half].addcmul_(heads_RLHD[..., half:], sine[..., :half], value=-direction)
    rotated[..., half:].addcmul_(heads_RLHD[..., :half], sine[..., half:], value=direction)
    return rotated


def _apply_rotary(heads_RHLD: Tensor, tables: Any) -> Tensor:
    cosine, sine = (table[:, :, None] for table in tables)
    return _Rotary.apply(heads_RHLD.transpose(1, 2), cosine, sine).transpose(1, 2)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        pull = gradients[0] * up
        torch.ops.aten.silu_backward.grad_input(pull, gate, grad_input=pull)
        return pull, functional.silu(gate).mul_(gradients[0])


class FusedRMSNorm(LlamaRMSNorm):
    """RMS norm with a frozen weight."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(hidden_states)
        if hidden_states.is_cuda:  # one kernel there
            return functional.rms_norm(
                hidden_states, self.weight.shape, self.weight.to(hidden_states.dtype), self.variance_epsilon
            )
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


class FusedMLP(LlamaMLP):
    """SwiGLU that saves only its two inputs for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        ops = fused_ops(x)
        swiglu = _SwiGLU if ops is None else ops.LigerSiLUMulFunction
        return self.down_proj(swiglu.apply(self.gate_proj(x), self.up_proj(x)))


class FusedLoraLinear(LoraLinear):
    """One LoRA adapter on a plain linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = self.active_adapters == ["default"] and not (self.disable_adapters or self.merged or self.lora_variant)
        if args or kwargs or not plain:
            return super().forward(x, *args, **kwargs)
        flat = x.flatten(0, -2)
        parts: Any = self  # peft types the members of its dictionaries as modules only
        lora_a, lora_b = parts.lora_A["default"], parts.lora_B["default"].weight
        result, dropped = parts.base_layer(flat), parts.lora_dropout["default"](flat)
        low = lora_a(dropped if torch.is_autocast_enabled(x.device.type) else dropped.to(lora_b.dtype))
        result.addmm_(low.to(result.dtype), lora_b.t().to(result.dtype), alpha=self.scaling["default"])
        return result.view(*x.shape[:-1], -1)


class FusedAttention(LlamaAttention):
    """Attention with fused rotary embeddings, whose queries may be restricted to `kept` positions."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        kept: KeptPositions | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if past_key_values is not None or position_embeddings is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        query, key = self._query_and_key(hidden_states, position_embeddings, kept)
        value = self._heads(self.v_proj(hidden_states))
        if kept is not None:
            kwargs |= kept.bounds
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention_implementation(self.config), eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(mixed.flatten(2)), weights

    def _query_and_key(
        self, hidden_RLT: Tensor, tables: tuple[Tensor, Tensor], kept: KeptPositions | None
    ) -> tuple[Tensor, Tensor]:
        """Returns rotated queries, at `kept` positions only if given, and keys: (R, H, L, D)."""
        query_hidden, query_tables = hidden_RLT, tables
        if kept is not None:
            query_hidden, *query_tables = (one.index_select(1, kept.positions) for one in (hidden_RLT, *tables))  # type: ignore[assignment]
        query, key = self._heads(self.q_proj(query_hidden)), self._heads(self.k_proj(hidden_RLT))
        ops = fused_ops(query)
        if ops is None or kept is not None:
            return _apply_rotary(query, query_tables), _apply_rotary(key, tables)
        return ops.LigerRopeFunction.apply(query, key, *tables)

    def _heads(self, flat_RLT: Tensor) -> Tensor:
        return flat_RLT.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class PrunedDecoderLayer(LlamaDecoderLayer):
    """The last layer: with `last_layer_kept` it returns (1, n, T) in place of (1, L, T).

    The other layers get that argument too, and ignore it.
    """

    prunes_positions = True

    def forward(
        self, hidden_states: Tensor, *args: Any, last_layer_kept: KeptPositions | None = None, **kwargs: Any
    ) -> Tensor:
        if last_layer_kept is None:
            return super().forward(hidden_states, *args, **kwargs)
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), kept=last_layer_kept, **kwargs)
        hidden = hidden_states.index_select(1, last_layer_kept.positions) + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


_FUSED = {
    LlamaRMSNorm: FusedRMSNorm,
    LlamaMLP: FusedMLP,
    LlamaAttention: FusedAttention,
    LoraLinear: FusedLoraLinear,
}
