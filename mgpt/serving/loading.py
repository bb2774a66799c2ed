"""Loads a model to serve: from a folder of trained weights, or by its name in the registry."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.models.loading import ModelSpec, default_device
from mgpt.storage import Store, is_remote

if TYPE_CHECKING:
    from mgpt.registry.versions import Recipe
    from mgpt.serving.predictor import Predictor

PREFIX = "models:/"


def load(reference: str, tracking_uri: str, precision: str = "fp32") -> Predictor:
    """Loads a model by name (`models:/minigpt-v2@champion`, `models:/minigpt-v2/3`) or by the folder of its trained weights.

    Args:
        precision: of the frozen backbones, a key of `mgpt.models.backbones.PRECISIONS`.

    Raises:
        ValueError: there is no such model or folder, or its files are missing or altered.
    """
    if not reference.startswith(PREFIX):
        return load_weights(Path(reference), precision=precision)
    from mgpt.registry.versions import find

    return load_registered(find(tracking_uri, reference).recipe, precision)


def load_registered(recipe: Recipe, precision: str = "fp32") -> Predictor:
    """Loads registered weights from the store, verified against the digest that was registered.

    Raises:
        ValueError: a file is missing or differs, or a backbone does.
    """
    from mgpt.registry.versions import stored_manifest

    stored_manifest(recipe)
    if not is_remote(recipe.weights):
        return load_weights(Path(recipe.weights), recipe.backbones, precision)
    with tempfile.TemporaryDirectory() as scratch:
        Store(recipe.weights).fetch_folder(recipe.weights, scratch)
        return load_weights(Path(scratch), recipe.backbones, precision)


def load_weights(folder: Path, backbones: Mapping[str, str] | None = None, precision: str = "fp32") -> Predictor:
    """Loads trained weights of `save_trainable` on their backbones, in evaluation mode, on the GPU where there is one.

    Args:
        backbones: folder or URI of each backbone by name, tried before the location recorded in the weights' config.json.

    Raises:
        ValueError: the folder holds no trained weights, or a backbone is missing or not the one that they were trained on.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; give a folder of trained weights, or models:/NAME@champion")
    from mgpt.serving.predictor import Predictor

    spec = ModelSpec(backbones or {}, str(folder), loading={"precision": precision})
    model = spec.load_model(default_device())
    return Predictor(model, spec.load_processor(), model.config.prompt_format)
