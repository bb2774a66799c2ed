"""Converts original checkpoints to our model and back.

`from_original` joins the files that the original code joins at start-up: EVA ViT, BLIP-2 Q-Former, the language
model's folder and the released projection (and LoRA).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerModel, Blip2VisionModel

from mgpt.conversion.key_mapping import (
    blip2_state,
    eva_state,
    original_name,
    released_state,
    to_original_state,
    to_our_state,
)
from mgpt.models.backbones import (
    Backbones,
    backbone_reference,
    load_language,
    quiet_transformers,
    save_backbone,
)
from mgpt.models.configuration_minigpt import BackboneReference, MiniGPTConfig
from mgpt.models.modeling_minigpt import MiniGPTForConditionalGeneration
from mgpt.models.presets import ARCHITECTURES, LLAMA_7B, architecture_config, original_config, pretrained_image_size
from mgpt.models.processing_minigpt import MiniGPTProcessor
from mgpt.models.vision import resize_position_embeddings
from mgpt.models.weights import atomic_folder


def from_original(
    model_name: str,
    eva_vit: str | Path,
    llm: str | Path,
    released: str | Path,
    qformer: str | Path | None = None,
    sizes: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> MiniGPTForConditionalGeneration:
    """Loads a published model from its original files, in evaluation mode.

    Args:
        model_name: "minigpt4", "minigpt4-llama2" or "minigpt-v2".
        eva_vit, released, qformer: `.pth` files (qformer for minigpt4 only).
        llm: the language model's Hugging Face folder.
        sizes: see `mgpt.models.presets.original_config`.
        dtype: of the frozen backbones.

    Raises ValueError for a file that is absent, truncated or unsafe to unpickle, or whose keys or shapes do not fit
    the model.
    """
    if model_name in ARCHITECTURES and ARCHITECTURES[model_name].qformer != (qformer is not None):
        raise ValueError(
            f"qformer: {model_name} {'needs the BLIP-2 file' if qformer is None else 'has no Q-Former; leave it out'}"
        )
    config = original_config(model_name, llm, sizes)
    config.backbones = _references(eva_vit=eva_vit, llm=llm, qformer=qformer)
    blip2 = {} if qformer is None else blip2_state(qformer)
    vision = _vision(config, eva_vit, blip2, pretrained_image_size(sizes), dtype)
    backbones = Backbones(vision, load_language(llm, dtype))
    if qformer is not None:
        backbones.qformer, backbones.query_tokens = _qformer(config, qformer, blip2, dtype)
    model = MiniGPTForConditionalGeneration(config, backbones).eval()
    _load_released(model, released)
    return model


def to_original(model: MiniGPTForConditionalGeneration, path: str | Path | None = None) -> dict[str, torch.Tensor]:
    """Returns what the original runner would save: trained parameters and buffers (runner_base.py:579-587).

    path: also write them there as `{"model": ...}`, the form that the original's loader reads.
    Raises ValueError for a model with another tower or language model than the original's.
    """
    kinds = (model.config.vision_config.model_type, model.config.text_config.model_type)
    if kinds != ("blip_2_vision_model", "llama"):
        raise ValueError(
            f"to_original: the original code knows only its own ViT and LLaMA, not {kinds[0]} with {kinds[1]}"
        )
    lora = model.config.lora is not None
    trained = {name: parameter.detach().clone() for name, parameter in model.trainable_parameters().items()}
    state = to_original_state(trained, lora) | _buffers(model, lora)
    if path is not None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        torch.save({"model": {name: tensor.cpu() for name, tensor in state.items()}}, partial)
        partial.replace(target)
    return state


def convert_original(
    model_name: str,
    eva_vit: str | Path,
    llm: str | Path,
    released: str | Path,
    out: str | Path,
    qformer: str | Path | None = None,
    sizes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes `from_original`'s model and its processor as one Hugging Face folder; all files or none.

    ValueError if `out` exists.
    """
    out = _new_folder(out)
    model = from_original(model_name, eva_vit, llm, released, qformer, sizes, dtype=dtype)
    processor = MiniGPTProcessor.from_original(model_name, llm, sizes)
    with atomic_folder(out) as staging, quiet_transformers():
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
    return out


def convert_backbones(
    model_name: str,
    eva_vit: str | Path,
    out: str | Path,
    qformer: str | Path | None = None,
    sizes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> dict[str, str]:
    """Writes the frozen vision tower and Q-Former as backbone folders to train from, and returns their sha256 by name.

    The folders are `out/vision` and `out/qformer`; the language model's own folder is a backbone already. All are
    written or none. Raises ValueError if `out` exists.
    """
    out = _new_folder(out)
    config = architecture_config(model_name, {"model_type": "llama", **LLAMA_7B}, sizes)
    blip2 = {} if qformer is None else blip2_state(qformer)
    hashes = {}
    with atomic_folder(out) as staging:
        vision = _vision(config, eva_vit, blip2, pretrained_image_size(sizes), torch.float32)
        # The file's weights are half precision; interpolated position embeddings are float32.
        positions = () if config.image_size == pretrained_image_size(sizes) else ("embeddings.position_embedding",)
        hashes["vision"] = save_backbone(staging / "vision", vision, dtype=dtype, exact=positions)
        if qformer is not None:
            bridge, query_tokens = _qformer(config, qformer, blip2, torch.float32)
            hashes["qformer"] = save_backbone(staging / "qformer", bridge, query_tokens=query_tokens, dtype=dtype)
    return hashes


def _vision(
    config: MiniGPTConfig, path: str | Path, blip2: Mapping[str, torch.Tensor], trained_at: int, dtype: torch.dtype
) -> Blip2VisionModel:
    """Builds the tower.

    Its ln_vision is BLIP-2's with a Q-Former, else torch's default as in the original (minigpt_v2.py:66-73).
    """
    state = eva_state(path, config.vision_config.num_hidden_layers)
    width = config.vision_config.hidden_size
    norm = {name: tensor for name, tensor in blip2.items() if name.startswith("ln_vision.")}
    state |= norm if blip2 else {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
    positions = state.get("visual_encoder.pos_embed")
    if positions is not None:
        expected = (trained_at // config.vision_config.patch_size) ** 2 + 1
        if positions.ndim != 3 or positions.shape[1] != expected:
            raise ValueError(
                f"{path}: pos_embed is {tuple(positions.shape)}, expected (1, {expected}, {width}) "
                f"for a tower trained at {trained_at} pixels (sizes.pre_img)"
            )
        state["visual_encoder.pos_embed"] = resize_position_embeddings(positions, config.num_patches)
    with torch.device("meta"):
        tower = Blip2VisionModel(config.vision_config)
    _fill(tower, "vision_tower.", state, path, dtype)
    return tower


def _qformer(
    config: MiniGPTConfig, path: str | Path, blip2: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> tuple[Blip2QFormerModel, torch.Tensor]:
    state = {name: tensor for name, tensor in blip2.items() if not name.startswith("ln_vision.")}
    query_tokens = state.pop("query_tokens", None)
    expected = (1, config.num_query_tokens, config.qformer_config.hidden_size)
    if query_tokens is None or tuple(query_tokens.shape) != expected:
        found = "missing" if query_tokens is None else f"of shape {tuple(query_tokens.shape)}"
        raise ValueError(f"{path}: query_tokens is {found}, expected {expected}")
    with torch.device("meta"):
        bridge = Blip2QFormerModel(config.qformer_config)
    _fill(bridge, "qformer.", state, path, dtype)
    return bridge, query_tokens.to(dtype)


def _fill(
    module: nn.Module, prefix: str, original: Mapping[str, torch.Tensor], path: str | Path, dtype: torch.dtype
) -> None:
    """Assigns the original's tensors to a module on the meta device.

    Raises ValueError unless names, shapes and types fit.
    """
    expected = {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
    try:
        state = to_our_state(original, expected, lora=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    wrong = [
        f"{original_name(name, False)} is {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if state[name].shape != shape
    ]
    wrong += [
        f"{original_name(name, False)} is {tensor.dtype}, expected floating point"
        for name, tensor in state.items()
        if not tensor.is_floating_point()
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    module.load_state_dict(
        {name.removeprefix(prefix): tensor.to(dtype) for name, tensor in state.items()}, strict=True, assign=True
    )


def _load_released(model: MiniGPTForConditionalGeneration, path: str | Path) -> None:
    try:
        state = to_our_state(released_state(path), model.trainable_parameters(), lora=model.config.lora is not None)
        model.load_trainable(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error


def _buffers(model: MiniGPTForConditionalGeneration, lora: bool) -> dict[str, torch.Tensor]:
    """Returns the buffers that the original saves with the trained parameters."""
    text = model.config.text_config
    inv_freq = model.language_model.get_decoder().rotary_emb.inv_freq.detach()
    stem = "llama_model.base_model.model.model" if lora else "llama_model.model"
    state = {
        f"{stem}.layers.{layer}.self_attn.rotary_emb.inv_freq": inv_freq.clone()
        for layer in range(text.num_hidden_layers)
    }
    if model.config.qformer_config is not None:
        state["Qformer.bert.embeddings.position_ids"] = torch.arange(
            model.config.qformer_config.max_position_embeddings
        )[None]
    return state


def _references(eva_vit: str | Path, llm: str | Path, qformer: str | Path | None) -> dict[str, dict[str, str]]:
    references = {"vision": _file_reference(eva_vit), "language": backbone_reference(llm)}
    if qformer is not None:
        references["qformer"] = _file_reference(qformer)
    return {name: vars(reference).copy() for name, reference in references.items()}


def _file_reference(path: str | Path) -> BackboneReference:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as stream:
        return BackboneReference(path.name, "", hashlib.file_digest(stream, "sha256").hexdigest(), str(path))


def _new_folder(out: str | Path) -> Path:
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another folder or remove it")
    return out
