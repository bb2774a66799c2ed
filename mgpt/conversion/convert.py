"""Original checkpoints → our model, and back.

`from_original` joins what the original code joins at start-up: EVA ViT, BLIP-2 Q-Former, the language model's folder and the released
projection (and LoRA).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Blip2QFormerModel, Blip2VisionModel

from mgpt.conversion.key_mapping import (
    blip2_state,
    eva_state,
    original_name,
    released_state,
    to_original_state,
    to_our_state,
)
from mgpt.models import backbones as backbone_folders
from mgpt.models.assembly import load_trainable, written_whole
from mgpt.models.configuration_minigpt import BackboneReference, MiniGPTConfig
from mgpt.models.modeling_minigpt import MiniGPTForConditionalGeneration, Parts
from mgpt.models.presets import MODEL_NAMES, original_config, pretrained_image_size
from mgpt.models.processing_minigpt import MiniGPTProcessor
from mgpt.models.vision import resize_positions

if TYPE_CHECKING:
    from torch import nn


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
    """A published model from its original files, in evaluation mode.

    model: "minigpt4", "minigpt4-llama2" or "minigpt-v2". eva_vit, released, qformer: `.pth` files (qformer for minigpt4 only). llm: the
    language model's Hugging Face folder. sizes: see `mgpt.models.presets.original_config`. dtype: of the frozen backbones.

    Raises ValueError for a file that is absent, cut, unsafe to unpickle, or whose keys or shapes are not those of the model.
    """
    if model_name in MODEL_NAMES and MODEL_NAMES[model_name].qformer != (qformer is not None):
        raise ValueError(
            f"qformer: {model_name} {'needs the BLIP-2 file' if qformer is None else 'has no Q-Former; leave it out'}"
        )
    config = original_config(model_name, llm, sizes)
    config.backbones = _references(eva_vit=eva_vit, llm=llm, qformer=qformer)
    blip2 = {} if qformer is None else blip2_state(qformer)
    parts = Parts(
        _vision(config, eva_vit, blip2, pretrained_image_size(sizes), dtype), backbone_folders.load_language(llm, dtype)
    )
    if qformer is not None:
        parts.qformer, parts.query_tokens = _qformer(config, qformer, blip2, dtype)
    model = MiniGPTForConditionalGeneration(config, parts).eval()
    _load_released(model, released)
    return model


def to_original(model: MiniGPTForConditionalGeneration, path: str | Path | None = None) -> dict[str, torch.Tensor]:
    """What the original runner would save of this model: trained parameters and buffers, under the original's names
    (runner_base.py:579-587).

    path: where to write it as `{"model": ...}`, which the original's loader takes; None only returns it. Raises ValueError for a model that
    the original cannot express (another tower or language model).
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
    """`from_original`, written with its processor as a whole Hugging Face folder; all or nothing. ValueError when `out` exists."""
    out = _fresh(out)
    model = from_original(model_name, eva_vit, llm, released, qformer, sizes, dtype=dtype)
    processor = MiniGPTProcessor.from_original(model_name, llm, sizes)
    with written_whole(out) as staging, backbone_folders.quiet_transformers():
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
    """The frozen vision side as base folders `out/vision` and `out/qformer`, to train from: part → sha256. The language model's own
    folder is a base as it stands. All or nothing; ValueError when `out` exists.
    """
    from mgpt.models.presets import LLAMA_7B, system_config

    out = _fresh(out)
    config = system_config(model_name, {"model_type": "llama", **LLAMA_7B}, sizes)
    blip2 = {} if qformer is None else blip2_state(qformer)
    hashes = {}
    with written_whole(out) as staging:
        vision = _vision(config, eva_vit, blip2, pretrained_image_size(sizes), torch.float32)
        # The file's weights are half precision; only what was interpolated from them is more.
        positions = () if config.image_size == pretrained_image_size(sizes) else ("embeddings.position_embedding",)
        hashes["vision"] = backbone_folders.save_backbone(staging / "vision", vision, dtype=dtype, exact=positions)
        if qformer is not None:
            bridge, query_tokens = _qformer(config, qformer, blip2, torch.float32)
            hashes["qformer"] = backbone_folders.save_backbone(
                staging / "qformer", bridge, query_tokens=query_tokens, dtype=dtype
            )
    return hashes


def _vision(
    config: MiniGPTConfig, path: str | Path, blip2: Mapping[str, torch.Tensor], trained_at: int, dtype: torch.dtype
) -> Blip2VisionModel:
    """The tower with its ln_vision: BLIP-2's beside a Q-Former, else torch's default, as the original leaves it (minigpt_v2.py:66-73)."""
    state = eva_state(path, config.vision_config.num_hidden_layers)
    width = config.vision_config.hidden_size
    norm = {name: tensor for name, tensor in blip2.items() if name.startswith("ln_vision.")}
    state |= norm if blip2 else {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
    positions = state.get("visual_encoder.pos_embed")
    if positions is not None:
        expected = (trained_at // config.vision_config.patch_size) ** 2 + 1
        if positions.ndim != 3 or positions.shape[1] != expected:
            raise ValueError(
                f"{path}: pos_embed is {tuple(positions.shape)}, expected (1, {expected}, {width}) for a tower trained at {trained_at} "
                "pixels (sizes.pre_img)"
            )
        state["visual_encoder.pos_embed"] = resize_positions(positions, config.num_patches)
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
    """Give a module on the meta device the original's tensors, names and shapes checked."""
    wanted = {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
    try:
        state = to_our_state(original, wanted, lora=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    wrong = [
        f"{original_name(name, False)} is {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in wanted.items()
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
        load_trainable(model, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error


def _buffers(model: MiniGPTForConditionalGeneration, lora: bool) -> dict[str, torch.Tensor]:
    """The buffers that the original saves with the trained parameters."""
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
    references = {"vision": _file_reference(eva_vit), "language": backbone_folders.reference(llm)}
    if qformer is not None:
        references["qformer"] = _file_reference(qformer)
    return {name: vars(reference).copy() for name, reference in references.items()}


def _file_reference(path: str | Path) -> BackboneReference:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as stream:
        return BackboneReference(path.name, "", hashlib.file_digest(stream, "sha256").hexdigest(), str(path))


def _fresh(out: str | Path) -> Path:
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another folder or remove it")
    return out
