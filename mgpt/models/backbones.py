"""Frozen backbones: Hugging Face folders of a vision tower, a Q-Former and a language model, with their hashes.

A base folder holds `config.json` and `model.safetensors` as `save_pretrained` writes them. The Q-Former's folder also holds
`query_tokens.safetensors` with one tensor, `query_tokens` (1, queries, hidden); the language model's also its tokenizer. The original's
separate `ln_vision` is the tower's `post_layernorm`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Blip2QFormerModel,
    Blip2VisionModel,
    PreTrainedModel,
)

from mgpt.models.configuration_minigpt import BACKBONE_NAMES, BackboneReference
from mgpt.models.image_processing_minigpt import IMAGE_MEAN, IMAGE_STD
from mgpt.models.tokenizer import save_tokenizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # as settings name them
_HASHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model")
_QUERY_FILE = "query_tokens.safetensors"
_DROPPABLE = ("rotary_emb.inv_freq", "embeddings.position_ids")


def backbone_hash(folder: str | Path) -> str:
    """sha256 over the names and contents of a base folder's weights, configuration and tokenizer; other files do not count.

    Raises ValueError when the folder does not exist or holds no weights.
    """
    folder = _folder(folder)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ValueError(f"{folder}: no *.safetensors and no *.bin; this is not a base folder")
    files = sorted([*weights, *(folder / name for name in _HASHED if (folder / name).is_file())])
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            total.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def reference(folder: str | Path, backbone_id: str | None = None, revision: str = "") -> BackboneReference:
    """The reference to a base folder: its id (default: the folder's name), revision, hash and path."""
    folder = Path(folder)
    return BackboneReference(backbone_id or folder.name, revision, backbone_hash(folder), str(folder))


def save_backbone(
    folder: str | Path,
    model: PreTrainedModel,
    *,
    query_tokens: torch.Tensor | None = None,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    exact: tuple[str, ...] = (),
) -> str:
    """Write one base folder and return its hash.

    model: a vision tower, a Blip2QFormerModel (then query_tokens, (1, queries, hidden), is required) or a causal language model (then
    tokenizer is required). dtype: the stored type, default the model's own; exact: names that keep theirs. The model is left as it is.
    """
    folder = Path(folder)
    if isinstance(model, Blip2QFormerModel) != (query_tokens is not None):
        raise ValueError("query_tokens: belong to a Blip2QFormerModel and to nothing else; give both or neither")
    cast = (
        {name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and name not in exact}
        if dtype
        else set()
    )
    state = {name: tensor.to(dtype) if name in cast else tensor for name, tensor in model.state_dict().items()}
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=state)
    if query_tokens is not None:
        from safetensors.torch import save_file

        save_file(
            {"query_tokens": query_tokens.detach().to(dtype or query_tokens.dtype).contiguous()}, folder / _QUERY_FILE
        )
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    return backbone_hash(folder)


def load_vision(folder: str | Path, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """The vision tower of a folder, e.g. Blip2VisionModel, SigLIP, CLIP or DINO; ValueError names missing and unexpected weights."""
    config = vision_config(folder)
    return _load(vision_class(config), folder, dtype, config=config, **kwargs)


def vision_class(config: Any) -> type:
    """The transformers class of a vision configuration."""
    return Blip2VisionModel if config.model_type == "blip_2_vision_model" else AutoModel


def load_qformer(folder: str | Path, dtype: torch.dtype) -> tuple[Blip2QFormerModel, torch.Tensor]:
    """The Q-Former of a folder and its query tokens (1, queries, hidden)."""
    query_tokens = _query_tokens(_folder(folder)).to(dtype)
    return _load(Blip2QFormerModel, folder, dtype), query_tokens


def load_language(
    folder: str | Path, dtype: torch.dtype, quantization: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The causal language model of a folder. quantization: None, "8bit" or "4bit" (bitsandbytes, the `quantized` extra)."""
    if quantization is not None:
        kwargs["quantization_config"] = quantization_config(quantization, dtype)
    return _load(AutoModelForCausalLM, folder, dtype, **kwargs)


def quantization_config(kind: str, dtype: torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig for "8bit" or "4bit" (NF4); ValueError for another kind or when bitsandbytes is not installed."""
    from importlib.util import find_spec

    if kind not in ("8bit", "4bit"):
        raise ValueError(f"quantization: {kind!r} is unknown; choose 8bit, 4bit or none")
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization: {kind} needs bitsandbytes, which is not installed; run pip install 'mgpt[quantized]' or set it to none"
        )
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def vision_config(folder: str | Path) -> Any:
    """The vision tower's configuration; of a two-tower folder (CLIP, SigLIP), its vision part."""
    config = _config(folder)
    return getattr(config, "vision_config", None) or config


def language_config(folder: str | Path) -> Any:
    """The language model's configuration; ValueError when there is none or it cannot be read."""
    return _config(folder)


def qformer_config(folder: str | Path) -> Any:
    """The Q-Former's configuration."""
    return _config(folder)


def pixel_statistics(folder: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of a tower's pixels, from its folder's preprocessor_config.json; CLIP's where there is none."""
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        return list(IMAGE_MEAN), list(IMAGE_STD)
    try:
        declared = json.loads(path.read_text())
        return [float(value) for value in declared["image_mean"]], [float(value) for value in declared["image_std"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no image_mean and image_std in it ({type(error).__name__}: {error})") from error


def check_finite(state: Mapping[str, torch.Tensor], place: str) -> None:
    """ValueError that names every tensor with a NaN or an infinite value. Tensors on the meta device have none."""
    floating = {
        name: tensor
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
    }
    # The extremes carry NaN along, and unlike `isfinite` cost no second copy of the weights.
    broken = [name for name, tensor in floating.items() if not torch.stack(torch.aminmax(tensor)).isfinite().all()]
    if broken:
        raise ValueError(
            f"{place}: weights that are not finite (NaN or infinite): {', '.join(broken)}; use another checkpoint"
        )


def query_count(folder: str | Path) -> int:
    """How many learned queries a Q-Former folder holds."""
    return _query_tokens(Path(folder)).shape[1]


def check_backbones(expected: dict[str, dict[str, str]], folders: dict[str, str | Path]) -> None:
    """The base guard: every base that a checkpoint was trained on is given, and its hash is the same.

    Raises ValueError with both hashes, once for all backbones that differ.
    """
    absent = [name for name in expected if folders.get(name) is None]
    if absent:
        raise ValueError(
            f"backbones: {', '.join(absent)} not given; this checkpoint needs the folders of {', '.join(expected)}"
        )
    unknown = [name for name in folders if name not in expected and folders[name] is not None]
    if unknown:
        raise ValueError(
            f"backbones: {', '.join(unknown)} given, but this checkpoint was trained without; leave it out (known: {', '.join(BACKBONE_NAMES)})"
        )
    wrong = []
    for name, base in expected.items():
        found = backbone_hash(folders[name])
        if found != base["sha256"]:
            wrong.append(
                f"{name}: trained on {base['id']} {base['revision']} with sha256 {base['sha256']}, but {folders[name]} has {found}"
            )
    if wrong:
        raise ValueError(
            "wrong base. A trained projection means nothing on another base.\n  "
            + "\n  ".join(wrong)
            + "\nGive the recorded base, or train again from the pretrain stage on the new one."
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and loading notes, which say in many lines what is checked here anyway."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a Hugging Face model folder")
    return folder


def _query_tokens(folder: Path) -> torch.Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / _QUERY_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {_QUERY_FILE}; a Q-Former base needs its query tokens (mgpt.models.backbones.save_base writes them)"
        )
    try:
        return load_file(path)["query_tokens"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); write the base again") from error


def _config(folder: str | Path) -> Any:
    folder = _folder(folder)
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error


def _load(model_class: Any, folder: str | Path, dtype: torch.dtype, **kwargs: Any) -> Any:
    """from_pretrained that refuses what it would only warn of: weights that are missing, left over, or of another shape."""
    folder = _folder(folder)
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
