"""Loads trained weights, from a folder or by reference from a store, into a predictor. Every file is verified before it
is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mgpt.models.loading import ModelSpec, default_device
from mgpt.serving.predictor import Predictor
from mgpt.storage import Store
from mgpt.storage.types import WeightsReference
from mgpt.storage.weights import open_weights, resolve_location


def load(model: WeightsReference | Path, store: Store | None = None, precision: str = "fp32") -> Predictor:
    """Loads a model by the reference to its weights, or from a folder of trained weights.

    Args:
        store: holds referenced weights; default: the store they were registered in.
        precision: of the frozen backbones, a key of `mgpt.models.backbones.PRECISIONS`.

    Raises:
        ValueError: weights or backbones are missing, or differ from what was registered or trained on.
    """
    if isinstance(model, Path):
        return load_weights(model, precision=precision)
    store = store or Store(model.root)
    backbones = {name: resolve_location(location, store) for name, location in model.backbones.items()}
    return load_weights(open_weights(model, store), backbones, precision)


def load_weights(folder: Path, backbones: Mapping[str, str] | None = None, precision: str = "fp32") -> Predictor:
    """Loads trained weights of `save_trainable` on their backbones, in evaluation mode, on the GPU where there is one.

    Args:
        backbones: folder or URI of each backbone by name, tried before the location recorded in the weights'
        config.json.

    Raises:
        ValueError: the folder holds no trained weights, or a backbone is missing or not the one that they were
        trained on.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; give a folder of trained weights, or models:/NAME@champion")
    spec = ModelSpec(dict(backbones or {}), str(folder), loading={"precision": precision})
    model = spec.load_model(default_device())
    return Predictor(model, spec.load_processor(), model.config.prompt_format)
