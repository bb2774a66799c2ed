"""LLaMA's layers for training: the same functions and gradients with fewer passes over memory, and a last layer that works only where an
answer is.

`make_lean` changes a language model in place, from outside, before training; weights, names and files stay as they are. What it does not
know (another architecture, trained norms, adapters that are switched off, generation) runs as before.

- Norms, rotary embeddings and SwiGLU keep fewer tensors for the gradient and write into what they made themselves. On CUDA they are one
  kernel each: torch's for norms, Liger's for the others (`mgpt.models.kernels`). Contract: Liger's write into the outputs of the products
  before them, and SwiGLU's gradient into what it kept, unseen by autograd; so nothing else may read those, and a graph serves one backward.
- LoRA's sum is part of its second product.
- Nothing follows the last layer but the head, which training needs at supervised positions alone. So of a packed row its queries and its
  attention are computed for each sample's tail (`mgpt.models.tail`); keys and values stay whole.

Letters: R rows, L positions of a row, H heads, D a head's width, T a layer's width.
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

from mgpt.models.kernels import fused
from mgpt.models.tail import Tail


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, hidden_RLT: Tensor, weight_T: Tensor, epsilon: float) -> Tensor:
        wide = hidden_RLT.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = length.square_().div_(wide.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden_RLT, weight_T, inverse)
        return (wide * inverse).mul_(weight_T).to(hidden_RLT.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight, inverse = ctx.saved_tensors
        wide, weighted = hidden.float(), gradients[0].float() * weight
        pull = torch.linalg.vecdot(weighted, wide)[..., None].mul_(inverse.pow(3)).div_(-wide.shape[-1])
        return weighted.mul_(inverse).addcmul_(wide, pull).to(hidden.dtype), None, None


class _Rotation(Function):
    @staticmethod
    def forward(ctx: Any, heads_RLHD: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(heads_RLHD, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradients[0], cosine, sine, -1), None, None


def _turned(heads_RLHD: Tensor, cosine: Tensor, sine: Tensor, way: int) -> Tensor:
    """Each pair (i, i + D/2) turned by its position's angle, whose cosine and sine stand twice in the tables; way -1 turns back."""
    half = heads_RLHD.shape[-1] // 2
    turned = heads_RLHD * cosine
    turned[..., :half].addcmul_(heads_RLHD[..., half:], sine[..., :half], value=-way)
    turned[..., half:].addcmul_(heads_RLHD[..., :half], sine[..., half:], value=way)
    return turned


class _Gated(Function):
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


def _rotated(heads_RHLD: Tensor, tables: Any) -> Tensor:
    cosine, sine = (table[:, :, None] for table in tables)
    return _Rotation.apply(heads_RHLD.transpose(1, 2), cosine, sine).transpose(1, 2)


class LeanNorm(LlamaRMSNorm):
    """RMS norm with a frozen weight."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(hidden_states)
        if hidden_states.is_cuda:  # one kernel there
            return functional.rms_norm(
                hidden_states, self.weight.shape, self.weight.to(hidden_states.dtype), self.variance_epsilon
            )
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class LeanMlp(LlamaMLP):
    """SwiGLU that keeps its two inputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = fused(x)
        gated = _Gated if kernels is None else kernels.LigerSiLUMulFunction
        return self.down_proj(gated.apply(self.gate_proj(x), self.up_proj(x)))


class LeanLora(LoraLinear):
    """LoRA of one adapter on a plain linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (
            args
            or kwargs
            or self.disable_adapters
            or self.merged
            or self.active_adapters != ["default"]
            or self.lora_variant
        ):
            return super().forward(x, *args, **kwargs)
        flat = x.flatten(0, -2)
        parts: Any = self  # peft's dictionaries know their members as modules only
        lower, upper = parts.lora_A["default"], parts.lora_B["default"].weight
        result, given = parts.base_layer(flat), parts.lora_dropout["default"](flat)
        low = lower(given if torch.is_autocast_enabled(x.device.type) else given.to(upper.dtype))
        result.addmm_(low.to(result.dtype), upper.t().to(result.dtype), alpha=self.scaling["default"])
        return result.view(*x.shape[:-1], -1)


class LeanAttention(LlamaAttention):
    """Attention that may ask for the tails alone."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        asked: Tail | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if past_key_values is not None or position_embeddings is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        query, key = self._turned(hidden_states, position_embeddings, asked)
        value = self._heads(self.v_proj(hidden_states))
        if asked is not None:
            kwargs |= asked.bounds
        mix = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = mix(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(mixed.flatten(2)), weights

    def _turned(self, hidden_RLT: Tensor, tables: tuple[Tensor, Tensor], asked: Tail | None) -> tuple[Tensor, Tensor]:
        """Queries, of what is asked alone, and keys, both turned by their positions: (R, H, L, D)."""
        asking, asking_tables = hidden_RLT, tables
        if asked is not None:
            asking, *asking_tables = (one.index_select(1, asked.places) for one in (hidden_RLT, *tables))  # type: ignore[assignment]
        query, key = self._heads(self.q_proj(asking)), self._heads(self.k_proj(hidden_RLT))
        kernels = fused(query)
        if kernels is None or asked is not None:
            return _rotated(query, asking_tables), _rotated(key, tables)
        return kernels.LigerRopeFunction.apply(query, key, *tables)

    def _heads(self, flat_RLT: Tensor) -> Tensor:
        return flat_RLT.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class TailLayer(LlamaDecoderLayer):
    """The last layer: with a `tail`, (1, n, T) in place of (1, L, T)."""

    takes_tail = True

    def forward(self, hidden_states: Tensor, *args: Any, tail: Tail | None = None, **kwargs: Any) -> Tensor:
        if tail is None:
            return super().forward(hidden_states, *args, **kwargs)
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), asked=tail, **kwargs)
        hidden = hidden_states.index_select(1, tail.places) + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


_LEAN = {LlamaRMSNorm: LeanNorm, LlamaMLP: LeanMlp, LlamaAttention: LeanAttention, LoraLinear: LeanLora}


def make_lean(language_model: nn.Module) -> None:
    """Gives the parts of a LLaMA model that are known here their lean form, in place; other models stay as they are."""
    layers = getattr(language_model.get_decoder(), "layers", None)  # type: ignore[operator]
    if not layers or type(layers[-1]) is not LlamaDecoderLayer:
        return
    for module in language_model.modules():
        lean = _LEAN.get(type(module))
        if lean is not None and _is_known(module):
            module.__class__ = lean
    layers[-1].__class__ = TailLayer


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, LlamaMLP):
        return module.config.hidden_act == "silu"
    return not isinstance(module, LoraLinear) or type(module.base_layer) is nn.Linear
