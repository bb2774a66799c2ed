"""The original's arithmetic written out in plain tensor operations, on the original files' own tensors and names.

An oracle for what was not recorded: it shares no code with `mgpt`, pads nothing and takes one sample at a time. `test_reference.py` first
holds it against the recorded numbers. Sources: eva_vit.py, Qformer.py, modeling_llama.py, minigpt_base.py, and peft's LoRA.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn import functional

IGNORE = -100


def original_ids(model: SentencePieceProcessor, text: str) -> list[int]:
    """transformers 4.30's slow LLaMA tokenizer: split at special tokens, each text between them to SentencePiece."""
    ids: list[int] = []
    for part in re.split("(<s>|</s>|<unk>)", text):
        ids += [model.piece_to_id(part)] if part in ("<s>", "</s>", "<unk>") else model.encode(part) if part else []
    return ids


class Reference:
    """One of the three systems; `trained` holds the released tensors under their original names, ready for gradients."""

    def __init__(self, eva_vit: Path, llm: Path, released: dict[str, Tensor], qformer: Path | None, sizes: dict[str, Any]) -> None:
        self.sizes = sizes
        self.eva = torch.load(eva_vit, weights_only=True)
        self.blip2 = None if qformer is None else torch.load(qformer, weights_only=True)["model"]
        self.llm = torch.load(llm / "pytorch_model.bin", weights_only=True)
        self.text = json.loads((llm / "config.json").read_text())
        self.pieces = SentencePieceProcessor(model_file=str(llm / "tokenizer.model"))
        kept = {name: tensor.clone() for name, tensor in released.items() if "inv_freq" not in name and "position_ids" not in name}
        self.trained = {name: tensor.requires_grad_() for name, tensor in kept.items()}

    # Images

    def image_embeds(self, pixels_3HW: Tensor) -> Tensor:
        """(tokens, language model width) of one image."""
        hidden_LD = self._vit(pixels_3HW)
        width = hidden_LD.shape[1]
        if self.blip2 is None:
            normed_LD = functional.layer_norm(hidden_LD, (width,), eps=1e-5)
            features_LD = normed_LD[1:].reshape(-1, 4 * width)
        else:
            weight, bias = self.blip2["ln_vision.weight"], self.blip2["ln_vision.bias"]
            features_LD = self._queries(functional.layer_norm(hidden_LD, (width,), weight, bias, eps=1e-5))
        return functional.linear(features_LD, self.trained["llama_proj.weight"], self.trained["llama_proj.bias"])

    def _vit(self, pixels_3HW: Tensor) -> Tensor:
        vit, eva = self.sizes["vit"], self.eva
        patches = functional.conv2d(pixels_3HW[None], eva["patch_embed.proj.weight"], eva["patch_embed.proj.bias"], stride=vit["patch"])
        x = torch.cat([eva["cls_token"][0], patches[0].flatten(1).T]) + self._positions()
        for number in range(vit["depth"]):
            block = {name.removeprefix(f"blocks.{number}."): t for name, t in eva.items() if name.startswith(f"blocks.{number}.")}
            y = _norm(x, block, "norm1", 1e-6)
            weights = block["attn.qkv.weight"].chunk(3)
            q, k, v = y @ weights[0].T + block["attn.q_bias"], y @ weights[1].T, y @ weights[2].T + block["attn.v_bias"]
            x = x + _linear(_attention(q, k, v, vit["heads"]), block, "attn.proj")
            y = functional.gelu(_linear(_norm(x, block, "norm2", 1e-6), block, "mlp.fc1"))
            x = x + _linear(y, block, "mlp.fc2")
        return x

    def _positions(self) -> Tensor:
        old, new = (self.sizes[name] // self.sizes["vit"]["patch"] for name in ("pre_img", "img"))
        stored = self.eva["pos_embed"][0].float()
        if old == new:
            return stored
        grid = stored[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        return torch.cat([stored[:1], grid[0].flatten(1).T])

    def _queries(self, image_LD: Tensor) -> Tensor:
        heads = self.sizes["qformer"]["heads"]
        bert = {name.removeprefix("Qformer.bert."): tensor for name, tensor in self.blip2.items()}
        x = _norm(self.blip2["query_tokens"][0], bert, "embeddings.LayerNorm", 1e-12)
        for number in range(self.sizes["qformer"]["layers"]):
            stem = f"encoder.layer.{number}."
            for kind, source in (("attention", None), ("crossattention", image_LD)) if number % 2 == 0 else (("attention", None),):
                seen = x if source is None else source
                q = _linear(x, bert, f"{stem}{kind}.self.query")
                k, v = (_linear(seen, bert, f"{stem}{kind}.self.{name}") for name in ("key", "value"))
                y = _linear(_attention(q, k, v, heads), bert, f"{stem}{kind}.output.dense")
                x = _norm(x + y, bert, f"{stem}{kind}.output.LayerNorm", 1e-12)
            y = functional.gelu(_linear(x, bert, f"{stem}intermediate_query.dense"))
            y = _linear(y, bert, f"{stem}output_query.dense")
            x = _norm(x + y, bert, f"{stem}output_query.LayerNorm", 1e-12)
        return x

    # Text

    def row(self, *parts: str | Tensor | tuple[str, int | None]) -> tuple[Tensor, Tensor]:
        """(embeddings, targets) of one sample: BOS, then its parts. A string is a prompt segment, a tensor an image, and a pair
        (answer with its end symbol, at most so many tokens or None) is supervised.
        """
        table = self.llm["model.embed_tokens.weight"]
        embeds, targets = [table[[1]]], [IGNORE]
        for part in parts:
            if isinstance(part, Tensor):
                embeds.append(self.image_embeds(part))
                targets += [IGNORE] * len(embeds[-1])
                continue
            text, most = part if isinstance(part, tuple) else (part, None)
            ids = original_ids(self.pieces, text)[:most]
            embeds.append(table[ids])
            targets += ids if isinstance(part, tuple) else [IGNORE] * len(ids)
        return torch.cat(embeds), torch.tensor(targets)

    def logits(self, x_LD: Tensor) -> Tensor:
        """(length, vocabulary) of one row without padding."""
        heads, eps = self.text["num_attention_heads"], self.text["rms_norm_eps"]
        for number in range(self.text["num_hidden_layers"]):
            stem = f"model.layers.{number}."
            y = _rms(x_LD, self.llm[f"{stem}input_layernorm.weight"], eps)
            q, k, v = (self._attended(y, f"{stem}self_attn.{name}_proj") for name in "qkv")
            y = _attention(_rotated(q, heads), _rotated(k, heads), v, heads, causal=True)
            x_LD = x_LD + self._attended(y, f"{stem}self_attn.o_proj")
            y = _rms(x_LD, self.llm[f"{stem}post_attention_layernorm.weight"], eps)
            gate, up, down = (self.llm[f"{stem}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            x_LD = x_LD + (functional.silu(y @ gate.T) * (y @ up.T)) @ down.T
        return _rms(x_LD, self.llm["model.norm.weight"], eps) @ self.llm["lm_head.weight"].T

    def _attended(self, x_LD: Tensor, name: str) -> Tensor:
        """One projection of the attention, with LoRA where the released file has one."""
        y = x_LD @ self.llm[f"{name}.weight"].T
        adapter = f"llama_model.base_model.model.{name}.lora_"
        if f"{adapter}A.weight" in self.trained:
            lora = self.sizes["lora"]
            y = y + lora["alpha"] / lora["r"] * (x_LD @ self.trained[f"{adapter}A.weight"].T @ self.trained[f"{adapter}B.weight"].T)
        return y

    def loss(self, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Mean cross-entropy over the supervised tokens of all rows."""
        logits = torch.cat([self.logits(embeds)[:-1] for embeds, _ in rows])
        return functional.cross_entropy(logits, torch.cat([targets[1:] for _, targets in rows]), ignore_index=IGNORE)

    @torch.no_grad()
    def greedy(self, embeds_LD: Tensor, tokens: int) -> list[int]:
        """The most probable next token, again and again, until end of text."""
        ids: list[int] = []
        while len(ids) < tokens and 2 not in ids:
            ids.append(int(self.logits(embeds_LD)[-1].argmax()))
            embeds_LD = torch.cat([embeds_LD, self.llm["model.embed_tokens.weight"][ids[-1:]]])
        return ids

    def optimiser(self, learning_rate: float) -> torch.optim.AdamW:
        """runner_base.py:99-129 on the original names: decay 0.05 unless one-dimensional or named bias, ln or bn."""
        plain = {name for name, tensor in self.trained.items() if tensor.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))}
        groups = [
            {"params": [tensor for name, tensor in self.trained.items() if (name in plain) == bare], "weight_decay": 0.0 if bare else 0.05}
            for bare in (False, True)
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999))


def _linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(x: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def _split(x_LD: Tensor, heads: int) -> Tensor:
    return x_LD.reshape(len(x_LD), heads, -1).transpose(0, 1)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    q, k, v = (_split(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _rotated(x_LD: Tensor, heads: int) -> Tensor:
    """Rotary positions, LLaMA's halves."""
    x = _split(x_LD, heads)
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1]).float()[:, None] / 10000 ** (torch.arange(half).float() / half)
    first, second = x[..., :half], x[..., half:]
    turned = torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)
    return turned.transpose(0, 1).flatten(1)
