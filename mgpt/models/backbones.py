"""Frozen backbones: Hugging Face folders of a vision tower, a Q-Former and a language model, with their hashes.

A backbone folder holds `config.json` and `model.safetensors` as `save_pretrained` writes them. The Q-Former's folder
also holds `query_tokens.safetensors` with one tensor, `query_tokens` (1, queries, hidden); the language model's also
its tokenizer. The original's separate `ln_vision` is the tower's `post_layernorm`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Blip2QFormerModel,
    Blip2VisionModel,
    PreTrainedModel,
)
from transformers.utils import logging

from mgpt.models.configuration_minigpt import BACKBONE_NAMES, BackboneReference, MiniGPTConfig
from mgpt.models.image_processing_minigpt import IMAGE_MEAN, IMAGE_STD
from mgpt.models.tokenizer import save_tokenizer
from mgpt.models.vision import resize_vision_tower

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # as settings name them
_HASHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model")
_QUERY_FILE = "query_tokens.safetensors"
_DROPPABLE = ("rotary_emb.inv_freq", "embeddings.position_ids")


@dataclass
class Backbones:
    """Loaded backbones, which a model is built around."""

    vision: PreTrainedModel
    language: PreTrainedModel
    qformer: Blip2QFormerModel | None = None
    query_tokens: torch.Tensor | None = None


def load_backbones(
    folders: Mapping[str, str | Path],
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
    attn_implementation: str | None = None,
    image_size: int | None = None,
) -> Backbones:
    """Loads the backbones of `folders`, by name. image_size: pixels, default the tower's own.

    Raises ValueError when a folder cannot be read.
    """
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    vision = load_vision(folders["vision"], dtype, **attention)
    resize_vision_tower(vision, image_size or vision.config.image_size)
    language = load_language(folders["language"], dtype, quantization, **attention)
    qformer = query_tokens = None
    if folders.get("qformer") is not None:
        qformer, query_tokens = load_qformer(folders["qformer"], dtype)
    return Backbones(vision, language, qformer, query_tokens)


def random_backbones(config: MiniGPTConfig) -> Backbones:
    """Returns backbones of the configured sizes with random weights, which `from_pretrained` overwrites."""
    vision = config.vision_config
    tower = Blip2VisionModel(vision) if _is_blip2_vision(vision) else AutoModel.from_config(vision)
    language = AutoModelForCausalLM.from_config(config.text_config)
    if config.qformer_config is None:
        return Backbones(tower, language)
    queries = torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size)
    return Backbones(tower, language, Blip2QFormerModel(config.qformer_config), queries)


def config_from_backbones(
    vision: str | Path,
    language: str | Path,
    qformer: str | Path | None = None,
    *,
    merge: int = 4,
    lora: Any = None,
    image_size: int | None = None,
    prompt_format: str | None = None,
    references: Mapping[str, BackboneReference] | None = None,
) -> MiniGPTConfig:
    """Returns the configuration of a model on these backbones, from their configurations and hashes; loads no weights.

    The options are those of `MiniGPTForConditionalGeneration.from_backbones`.
    """
    folders = {"vision": vision, "language": language} | ({} if qformer is None else {"qformer": qformer})
    known = references or {}
    config = vision_config(vision)
    if image_size is not None:
        config.image_size = image_size
    mean, std = pixel_statistics(vision)
    return MiniGPTConfig(
        config,
        language_config(language),
        None if qformer is None else qformer_config(qformer),
        merge=merge,
        lora=lora,
        num_query_tokens=32 if qformer is None else count_query_tokens(qformer),
        prompt_format=prompt_format or ("minigpt-v2" if qformer is None else "minigpt4"),
        image_mean=mean,
        image_std=std,
        backbones={name: known.get(name) or backbone_reference(folder) for name, folder in folders.items()},
    )


def backbone_hash(folder: str | Path) -> str:
    """Returns the sha256 over names and contents of a backbone's weights, configuration and tokenizer files.

    Raises ValueError when the folder does not exist or holds no weights.
    """
    folder = _existing(folder)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ValueError(f"{folder}: no *.safetensors and no *.bin; this is not a backbone folder")
    files = sorted([*weights, *(folder / name for name in _HASHED if (folder / name).is_file())])
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            total.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def backbone_reference(folder: str | Path, backbone_id: str | None = None, revision: str = "") -> BackboneReference:
    """Returns the reference to a backbone folder: id (default: the folder's name), revision, hash and path."""
    folder = Path(folder)
    return BackboneReference(backbone_id or folder.name, revision, backbone_hash(folder), str(folder))


def check_backbones(expected: dict[str, dict[str, str]], folders: Mapping[str, str | Path]) -> None:
    """Checks that the backbones given are those that a checkpoint was trained on, by their hashes.

    Raises ValueError for a missing or surplus backbone, and one with both hashes for all backbones that differ.
    """
    absent = [name for name in expected if folders.get(name) is None]
    if absent:
        raise ValueError(
            f"backbones: {', '.join(absent)} not given; this checkpoint needs the folders of {', '.join(expected)}"
        )
    unknown = [name for name in folders if name not in expected and folders[name] is not None]
    if unknown:
        raise ValueError(
            f"backbones: {', '.join(unknown)} given, but this checkpoint was trained without; leave it out "
            f"(known: {', '.join(BACKBONE_NAMES)})"
        )
    wrong = []
    for name, entry in expected.items():
        found = backbone_hash(folders[name])
        if found != entry["sha256"]:
            wrong.append(
                f"{name}: trained on {entry['id']} {entry['revision']} with sha256 {entry['sha256']}, "
                f"but {folders[name]} has {found}"
            )
    if wrong:
        raise ValueError(
            "wrong backbone. A trained projection works only on the backbones it was trained on.\n  "
            + "\n  ".join(wrong)
            + "\nGive the recorded backbone, or train again from the pretrain stage on the new one."
        )


def save_backbone(
    folder: str | Path,
    model: PreTrainedModel,
    *,
    query_tokens: torch.Tensor | None = None,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    exact: tuple[str, ...] = (),
) -> str:
    """Writes one backbone folder and returns its hash; the model is not changed.

    Args:
        model: a vision tower, a Blip2QFormerModel or a causal language model.
        query_tokens: (1, queries, hidden), required for a Blip2QFormerModel and for nothing else.
        tokenizer: required for a language model.
        dtype: the stored type, by default the model's own; `exact` names tensors that keep theirs.
    """
    folder = Path(folder)
    if isinstance(model, Blip2QFormerModel) != (query_tokens is not None):
        raise ValueError("query_tokens: belong to a Blip2QFormerModel and to nothing else; give both or neither")
    state = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() and name not in exact else tensor
        for name, tensor in model.state_dict().items()
    }
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state)
    if query_tokens is not None:
        queries = query_tokens.detach().to(dtype or query_tokens.dtype).contiguous()
        save_file({"query_tokens": queries}, folder / _QUERY_FILE)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    return backbone_hash(folder)


def load_vision(folder: str | Path, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Loads a vision tower, e.g.

    Blip2VisionModel, SigLIP, CLIP or DINO. ValueError lists missing and unexpected weights.
    """
    config = vision_config(folder)
    model_class = Blip2VisionModel if _is_blip2_vision(config) else AutoModel
    return _load(model_class, folder, dtype, config=config, **kwargs)


def load_qformer(folder: str | Path, dtype: torch.dtype) -> tuple[Blip2QFormerModel, torch.Tensor]:
    """Loads a Q-Former and its query tokens (1, queries, hidden)."""
    query_tokens = _query_tokens(_existing(folder)).to(dtype)
    return _load(Blip2QFormerModel, folder, dtype), query_tokens


def load_language(
    folder: str | Path, dtype: torch.dtype, quantization: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Loads a causal language model. quantization: None, "8bit" or "4bit" (bitsandbytes, the `quantized` extra)."""
    if quantization is not None:
        kwargs["quantization_config"] = quantization_config(quantization, dtype)
    return _load(AutoModelForCausalLM, folder, dtype, **kwargs)


def quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Returns the settings of "8bit" or "4bit" (NF4). Raises ValueError for another kind, or without bitsandbytes."""
    if kind not in ("8bit", "4bit"):
        raise ValueError(f"quantization: {kind!r} is unknown; choose 8bit, 4bit or none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization: {kind} needs bitsandbytes, which is not installed; "
            "run pip install 'mgpt[quantized]' or set it to none"
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def vision_config(folder: str | Path) -> Any:
    """Returns the vision tower's configuration; of a two-tower folder (CLIP, SigLIP), its vision part."""
    config = _read_config(folder)
    return getattr(config, "vision_config", None) or config


def language_config(folder: str | Path) -> Any:
    """Returns the language model's configuration. Raises ValueError when it is absent or cannot be read."""
    return _read_config(folder)


def qformer_config(folder: str | Path) -> Any:
    """Returns the Q-Former's configuration."""
    return _read_config(folder)


def pixel_statistics(folder: str | Path) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation of a tower's pixels: its preprocessor_config.json's, else CLIP's."""
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        return list(IMAGE_MEAN), list(IMAGE_STD)
    try:
        declared = json.loads(path.read_text())
        return [float(value) for value in declared["image_mean"]], [float(value) for value in declared["image_std"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no image_mean and image_std in it ({type(error).__name__}: {error})") from error


def count_query_tokens(folder: str | Path) -> int:
    """Returns the number of learned queries in a Q-Former folder."""
    return _query_tokens(Path(folder)).shape[1]


def check_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises ValueError that names every tensor with a NaN or infinite value. Tensors on the meta device pass."""
    floating = {
        name: tensor
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
    }
    # NaN propagates to the extremes, which unlike `isfinite` need no second copy of the weights.
    broken = [name for name, tensor in floating.items() if not torch.stack(torch.aminmax(tensor)).isfinite().all()]
    if broken:
        raise ValueError(
            f"{source}: weights that are not finite (NaN or infinite): {', '.join(broken)}; use another checkpoint"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turns off transformers' progress bars and loading notes, which report at length what is checked here anyway."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _is_blip2_vision(config: Any) -> bool:
    """Returns whether a vision configuration is Blip2VisionModel's, which `AutoModel` does not know."""
    return config.model_type == "blip_2_vision_model"


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a Hugging Face model folder")
    return folder


def _query_tokens(folder: Path) -> torch.Tensor:
    path = folder / _QUERY_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {_QUERY_FILE}; a Q-Former folder needs its query tokens "
            "(mgpt.models.backbones.save_backbone writes them)"
        )
    try:
        return load_file(path)["query_tokens"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); write the backbone again") from error


def _read_config(folder: str | Path) -> Any:
    folder = _existing(folder)
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error


def _load(model_class: Any, folder: str | Path, dtype: torch.dtype, **kwargs: Any) -> Any:
    """Calls from_pretrained, and raises ValueError where it only warns: missing, unexpected or mismatched weights."""
    folder = _existing(folder)
    try:
        with quiet_transformers():
            model, info = model_class.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True, **kwargs
            )
    except Exception as error:  # transformers, safetensors, pickle and torch each raise their own
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    faults = {
        "missing": info["missing_keys"],
        "of another shape": info["mismatched_keys"],
        "unexpected": {key for key in info["unexpected_keys"] if not key.endswith(_DROPPABLE)},
    }
    listed = [f"{kind}: {', '.join(sorted(map(str, keys)))}" for kind, keys in faults.items() if keys]
    if listed:
        raise ValueError(f"{folder}: the weights do not fit {type(model).__name__}: " + "; ".join(listed))
    check_finite(model.state_dict(), str(folder))
    return model
