"""Putting a model together from base folders, and keeping its trained part apart from them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mgpt.models import backbones as backbone_folders
from mgpt.models.configuration_minigpt import BackboneReference, MiniGPTConfig
from mgpt.models.model_card import model_card
from mgpt.models.vision import resize_tower

if TYPE_CHECKING:
    from mgpt.models.modeling_minigpt import MiniGPTForConditionalGeneration, Parts

TRAINABLE_FILE = "trainable.safetensors"


def from_backbones(
    cls: Any,
    vision: str | Path,
    language: str | Path,
    qformer: str | Path | None = None,
    *,
    merge: int = 4,
    lora: Any = None,
    seed: int = 0,
    image_size: int | None = None,
    prompt_format: str | None = None,
    references: Mapping[str, BackboneReference] | None = None,
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
    attn_implementation: str | None = None,
) -> MiniGPTForConditionalGeneration:
    """A fresh projection (and LoRA) on frozen base folders, in evaluation mode.

    merge: consecutive vision tokens in one image token; without effect with a Q-Former. lora: LoraSpec, a mapping, or None. seed: of the
    fresh weights. image_size: pixels, default the tower's own. references: name → id and revision of each base, default the folder's name.
    dtype: of the frozen backbones. quantization: of the language model, "8bit", "4bit" or None.

    Raises ValueError when a folder cannot be read or the parts do not fit together.
    """
    folders = {"vision": vision, "language": language} | ({"qformer": qformer} if qformer is not None else {})
    config = config_from_backbones(
        **folders, merge=merge, lora=lora, image_size=image_size, prompt_format=prompt_format, references=references
    )
    parts = _load_parts(folders, dtype, quantization, attn_implementation, image_size)
    return _build(cls, config, parts, seed)


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
    """The configuration of `from_bases`' model, from the folders' headers and hashes alone: no weights are loaded."""
    folders = {"vision": vision, "language": language} | ({"qformer": qformer} if qformer is not None else {})
    known = references or {}
    vision_config = backbone_folders.vision_config(vision)
    if image_size is not None:
        vision_config.image_size = image_size
    mean, std = backbone_folders.pixel_statistics(vision)
    return MiniGPTConfig(
        vision_config,
        backbone_folders.language_config(language),
        None if qformer is None else backbone_folders.qformer_config(qformer),
        merge=merge,
        lora=lora,
        num_query_tokens=32 if qformer is None else backbone_folders.query_count(qformer),
        prompt_format=prompt_format or ("minigpt-v2" if qformer is None else "minigpt4"),
        image_mean=mean,
        image_std=std,
        backbones={name: known.get(name) or backbone_folders.reference(folder) for name, folder in folders.items()},
    )


def from_trainable(
    cls: Any,
    folder: str | Path,
    backbones: Mapping[str, str | Path],
    *,
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
    attn_implementation: str | None = None,
) -> MiniGPTForConditionalGeneration:
    """What `save_trainable` wrote, on the base folders it was trained on, in evaluation mode.

    Raises ValueError for another base (both hashes are named), a file that cannot be read, or weights that do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    backbone_folders.check_backbones(config.backbones, dict(backbones))
    parts = _load_parts(dict(backbones), dtype, quantization, attn_implementation, config.image_size)
    model = _build(cls, config, parts, seed=0)
    load_trainable(model, read_tensors(folder / TRAINABLE_FILE))
    return model


def save_trainable(model: MiniGPTForConditionalGeneration, folder: str | Path, processor: Any = None) -> None:
    """Write the trained part, the configuration with its base references, a card and the processor's files; all or nothing."""
    from safetensors.torch import save_file

    state = {name: parameter.detach().cpu().contiguous() for name, parameter in model.trainable_parameters().items()}
    backbone_folders.check_finite(state, "model")
    with written_whole(folder) as staging:
        save_file(state, staging / TRAINABLE_FILE, metadata={"format": "pt"})
        model.config.save_pretrained(staging)
        write_card(model.config, staging)
        if processor is not None:
            processor.save_pretrained(staging)


def load_trainable(model: MiniGPTForConditionalGeneration, state: Mapping[str, torch.Tensor]) -> None:
    """Copy trained weights into a model; ValueError lists every name that is missing, unexpected, of another shape or type, not finite."""
    own = model.trainable_parameters()
    faults = [f"missing: {name}" for name in own if name not in state]
    faults += [f"unexpected: {name}" for name in state if name not in own]
    faults += [
        f"shape of {name}: {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults += [
        f"type of {name}: {tensor.dtype}, expected floating point"
        for name, tensor in state.items()
        if not tensor.is_floating_point()
    ]
    if faults:
        raise ValueError("trained weights do not fit this model:\n  " + "\n  ".join(faults))
    backbone_folders.check_finite(state, "trained weights")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def read_whole(from_pretrained: Any, folder: str | Path, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """(model, loading info) of transformers' `from_pretrained`, its various errors as one ValueError, its warnings as errors."""
    from safetensors import SafetensorError

    if Path(folder).is_dir():
        read_config(folder)
    try:
        with backbone_folders.quiet_transformers():
            model, info = from_pretrained(folder, *args, output_loading_info=True, **kwargs)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    faults = [
        f"{kind}: {', '.join(sorted(map(str, info[kind])))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(kind)
    ]
    if faults:
        raise ValueError(f"{folder}: the weights do not fit the configuration; " + "; ".join(faults))
    backbone_folders.check_finite(model.state_dict(), str(folder))
    return model, info


def read_generation(model: Any, folder: str | Path, revision: str | None = None) -> None:
    """Give a model the generation settings that were saved with it: a language model's end tokens may be in no other file."""
    from transformers import GenerationConfig

    try:
        model.generation_config = GenerationConfig.from_pretrained(folder, revision=revision or "main")
    except OSError:  # a folder without: those of the language model's configuration stay
        return


def read_config(folder: str | Path) -> MiniGPTConfig:
    """The configuration of a saved folder; ValueError when it is absent, no JSON, or of another kind of model."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder that save_trainable or save_pretrained wrote")
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not a JSON object ({error})") from error
    if kind != MiniGPTConfig.model_type:
        raise ValueError(
            f"{path}: model_type is {kind!r}, expected {MiniGPTConfig.model_type!r}; this folder holds another kind of model"
        )
    return MiniGPTConfig.from_pretrained(folder)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file; ValueError when it is absent or cut short."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); fetch or write it again") from error


def write_card(config: MiniGPTConfig, folder: str | Path) -> None:
    """Write README.md, unless the folder has one."""
    path = Path(folder) / "README.md"
    if not path.exists():
        path.write_text(model_card(config))


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """A staging folder beside `folder` that takes its name when the block ends well, and vanishes otherwise."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if folder.is_dir():
            for path in staging.iterdir():
                os.replace(path, folder / path.name)
        else:
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _load_parts(
    folders: Mapping[str, Any],
    dtype: torch.dtype,
    quantization: str | None,
    attn_implementation: str | None,
    image_size: int | None,
) -> Parts:
    from mgpt.models.modeling_minigpt import Parts

    how = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    vision = backbone_folders.load_vision(folders["vision"], dtype, **how)
    resize_tower(vision, image_size or vision.config.image_size)
    language = backbone_folders.load_language(folders["language"], dtype, quantization, **how)
    qformer = query_tokens = None
    if folders.get("qformer") is not None:
        qformer, query_tokens = backbone_folders.load_qformer(folders["qformer"], dtype)
    return Parts(vision, language, qformer, query_tokens)


def _build(cls: Any, config: MiniGPTConfig, parts: Parts, seed: int) -> MiniGPTForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config, parts)
    return model.eval()
