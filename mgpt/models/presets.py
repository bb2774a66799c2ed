"""Sizes and settings of the published models, as plain values: importing them needs neither torch nor transformers.

Sources: configs/models/*.yaml, eva_vit.py:397-442, minigpt4.py:26-75, minigpt_v2.py:25-69 of the original code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgpt.models.configuration_minigpt import MiniGPTConfig

MLP_RATIO = 4.3637
CROSS_ATTENTION_EVERY = 2
EVA_VIT_G = {"width": 1408, "depth": 39, "heads": 16, "patch": 14}
BLIP2_QFORMER = {"vocab": 30523, "hidden": 768, "layers": 12, "heads": 12, "inter": 3072, "max_pos": 512, "nq": 32}


@dataclass(frozen=True)
class Architecture:
    """image_size: pixels. merge: vision tokens in an image token, without Q-Former. lora: see `LoraSpec`."""

    image_size: int
    qformer: bool
    merge: int
    lora: dict[str, Any] | None


ARCHITECTURES = {
    "minigpt4": Architecture(224, True, 1, None),
    "minigpt4-llama2": Architecture(224, False, 4, None),
    "minigpt-v2": Architecture(
        448, False, 4, {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ("q_proj", "v_proj")}
    ),
}
# The sections of `sizes`: their integer entries, and their other entries.
_SECTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vit": (tuple(EVA_VIT_G), ("mlp_ratio",)),
    "qformer": (tuple(BLIP2_QFORMER), ()),
    "lora": (("r", "alpha"), ("dropout", "targets")),
}
# Language models of the published models: fields of LlamaConfig.
LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LLAMA_13B = {
    "vocab_size": 32000,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "minigpt4-vicuna-7b": ("minigpt4", LLAMA_7B | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
    "minigpt4-vicuna-13b": ("minigpt4", LLAMA_13B | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}),
    "minigpt4-llama2-7b": ("minigpt4-llama2", LLAMA_7B | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    "minigpt-v2": ("minigpt-v2", LLAMA_7B | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
}


def preset(name: str) -> MiniGPTConfig:
    """Returns the configuration of a published model, a key of `PUBLISHED`. Raises ValueError for an unknown name."""
    return architecture_config(*_published(name), None)


def preset_parts(name: str) -> dict[str, Any]:
    """Returns the same as plain values: the arguments of `MiniGPTConfig`."""
    return architecture_arguments(*_published(name), None)


def _published(name: str) -> tuple[str, dict[str, Any]]:
    if name not in PUBLISHED:
        raise ValueError(f"preset: {name!r} is unknown; choose one of {', '.join(PUBLISHED)}")
    model_name, text = PUBLISHED[name]
    return model_name, {"model_type": "llama", **text}


def original_config(model_name: str, llm: str | Path, sizes: dict[str, Any] | None = None) -> MiniGPTConfig:
    """Returns the configuration of a model with the language model of a folder.

    sizes: None for the published sizes, else a dict with any of `vit` {width, depth, heads, patch, mlp_ratio},
    `qformer` {vocab, hidden, layers, heads, inter, max_pos, nq}, `lora` {r, alpha, dropout, targets}, `img` (pixels)
    and `pre_img` (pixels that the tower's file was trained at). Other entries are ignored; the language model's sizes
    are the folder's.

    Raises ValueError that lists every impossible size.
    """
    from mgpt.models.backbones import language_config

    return architecture_config(model_name, language_config(llm), sizes)


def architecture_config(model_name: str, text_config: Any, sizes: dict[str, Any] | None) -> MiniGPTConfig:
    """Returns the configuration of a model on a language model. ValueError for an unknown model or impossible sizes."""
    from mgpt.models.configuration_minigpt import MiniGPTConfig

    return MiniGPTConfig(**architecture_arguments(model_name, text_config, sizes))


def architecture_arguments(model_name: str, text_config: Any, sizes: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the same as plain values: the arguments of `MiniGPTConfig`."""
    if model_name not in ARCHITECTURES:
        raise ValueError(f"model: {model_name!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    chosen = ARCHITECTURES[model_name]
    sizes = _checked(sizes, chosen)
    vit = EVA_VIT_G | sizes.get("vit", {})
    vision = {
        "model_type": "blip_2_vision_model",
        "hidden_size": vit["width"],
        "num_hidden_layers": vit["depth"],
        "num_attention_heads": vit["heads"],
        "patch_size": vit["patch"],
        "image_size": sizes.get("img", chosen.image_size),
        "intermediate_size": int(vit["width"] * vit.get("mlp_ratio", MLP_RATIO)),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    qformer = BLIP2_QFORMER | sizes.get("qformer", {}) if chosen.qformer else None
    return {
        "vision_config": vision,
        "text_config": text_config,
        "qformer_config": None if qformer is None else _qformer(qformer, vit["width"]),
        "num_query_tokens": 32 if qformer is None else qformer["nq"],
        "merge": chosen.merge,
        "lora": _lora(chosen, sizes),
        "prompt_format": model_name,
    }


def pretrained_image_size(sizes: dict[str, Any] | None) -> int:
    """Returns the pixels that the tower's file was trained at, 224 for the published one."""
    return int((sizes or {}).get("pre_img") or 224)


def _checked(sizes: Any, chosen: Architecture) -> dict[str, Any]:
    """Returns the sizes without null entries. Raises ValueError that lists all mistakes."""
    if not isinstance(sizes or {}, dict):
        raise ValueError(f"sizes: expected a dict, got {type(sizes).__name__}")
    sizes = {name: value for name, value in (sizes or {}).items() if value is not None}
    faults = [fault for name in _SECTIONS if name in sizes for fault in _section_faults(name, sizes[name])]
    faults += [
        f"sizes.{name}: {sizes[name]!r} must be a whole number of pixels above 0"
        for name in ("img", "pre_img")
        if not _is_count(sizes.get(name, 1))
    ]
    if not faults:
        vit = EVA_VIT_G | sizes.get("vit", {})
        sides = {"img": sizes.get("img", chosen.image_size), "pre_img": pretrained_image_size(sizes)}
        faults += [
            f"sizes.{name}: {side} is not a multiple of the patch size, {vit['patch']}"
            for name, side in sides.items()
            if side % vit["patch"]
        ]
        faults += (
            [f"sizes.vit.heads: {vit['heads']} does not divide the width, {vit['width']}"]
            if vit["width"] % vit["heads"]
            else []
        )
    if faults:
        raise ValueError("; ".join(faults) + "; leave sizes out for the published models")
    return sizes


def _section_faults(section: str, given: Any) -> list[str]:
    if not isinstance(given, dict):
        return [f"sizes.{section}: expected a dict, got {type(given).__name__}"]
    needed, other = _SECTIONS[section]
    faults = [
        f"sizes.{section}.{name}: unknown; known are {', '.join(needed + other)}"
        for name in given
        if name not in needed + other
    ]
    faults += [
        f"sizes.{section}.{name}: {given[name]!r} must be a whole number above 0"
        for name in needed
        if not _is_count(given.get(name, 1))
    ]
    return faults + [f"sizes.{section}.{name}: missing" for name in needed if section == "lora" and name not in given]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _qformer(sizes: dict[str, int], encoder_width: int) -> dict[str, Any]:
    return {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["inter"],
        "max_position_embeddings": sizes["max_pos"],
        "encoder_hidden_size": encoder_width,
        "cross_attention_frequency": CROSS_ATTENTION_EVERY,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }


def _lora(chosen: Architecture, sizes: dict[str, Any]) -> dict[str, Any] | None:
    if chosen.lora is None or "lora" not in sizes:
        return chosen.lora
    given = sizes["lora"]
    targets = tuple(given.get("targets", chosen.lora["target_modules"]))
    return {
        "r": given["r"],
        "lora_alpha": given["alpha"],
        "lora_dropout": given.get("dropout", 0.0),
        "target_modules": targets,
    }
