"""Reading and writing trained weights and saved models: config.json, safetensors files, the model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from mgpt.models.backbones import check_finite, quiet_transformers
from mgpt.models.configuration_minigpt import MiniGPTConfig
from mgpt.models.model_card import model_card

TRAINABLE_FILE = "trainable.safetensors"
_FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")  # of transformers' loading info


def save_trainable(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor], folder: str | Path, processor: Any
) -> None:
    """Writes trained weights `state`, the configuration with its backbone references, a model card and the processor.

    Either all files are written or none. Raises ValueError for weights that are not finite.
    """
    config: Any = model.config
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    check_finite(state, "model")
    with atomic_folder(folder) as staging:
        save_file(state, staging / TRAINABLE_FILE, metadata={"format": "pt"})
        config.save_pretrained(staging)
        write_model_card(config, staging)
        if processor is not None:
            processor.save_pretrained(staging)


def copy_trainable(parameters: Mapping[str, nn.Parameter], state: Mapping[str, torch.Tensor]) -> None:
    """Copies trained weights into a model's trainable parameters.

    Raises ValueError that lists every name that is missing, unexpected, of another shape or type, or not finite.
    """
    faults = [f"missing: {name}" for name in parameters if name not in state]
    faults += [f"unexpected: {name}" for name in state if name not in parameters]
    faults += [
        f"shape of {name}: {tuple(state[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in state and state[name].shape != parameter.shape
    ]
    faults += [
        f"type of {name}: {tensor.dtype}, expected floating point"
        for name, tensor in state.items()
        if not tensor.is_floating_point()
    ]
    if faults:
        raise ValueError("trained weights do not fit this model:\n  " + "\n  ".join(faults))
    check_finite(state, "trained weights")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def load_whole_model(from_pretrained: Any, folder: str | Path, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Returns (model, loading info) of transformers' `from_pretrained`.

    Raises ValueError in place of its various errors, and where it only warns: missing, unexpected or mismatched
    weights.
    """
    if Path(folder).is_dir():
        read_config(folder)
    try:
        with quiet_transformers():
            model, info = from_pretrained(folder, *args, output_loading_info=True, **kwargs)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    faults = [f"{kind}: {', '.join(sorted(map(str, info[kind])))}" for kind in _FAULTS if info.get(kind)]
    if faults:
        raise ValueError(f"{folder}: the weights do not fit the configuration; " + "; ".join(faults))
    check_finite(model.state_dict(), str(folder))
    return model, info


def load_generation_config(model: Any, folder: str | Path, revision: str | None = None) -> None:
    """Sets the generation settings saved with a model: a language model's end tokens may be in no other file."""
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder, revision=revision or "main")
    except OSError:  # no such file: the settings of the language model's configuration stay
        return


def read_config(folder: str | Path) -> MiniGPTConfig:
    """Returns the configuration of a saved folder.

    Raises ValueError when it is absent, not JSON, or of another model type.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder written by save_trainable or save_pretrained")
    try:
        model_type = json.loads(path.read_text()).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: not a JSON object ({error})") from error
    if model_type != MiniGPTConfig.model_type:
        raise ValueError(
            f"{path}: model_type is {model_type!r}, expected {MiniGPTConfig.model_type!r}; "
            "this folder holds another kind of model"
        )
    return MiniGPTConfig.from_pretrained(folder)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file. Raises ValueError when it is absent or truncated."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); download or write it again") from error


def write_model_card(config: MiniGPTConfig, folder: str | Path) -> None:
    """Writes README.md, unless the folder has one."""
    path = Path(folder) / "README.md"
    if not path.exists():
        path.write_text(model_card(config))


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a staging folder next to `folder` that takes its name when the block succeeds, else is removed."""
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
