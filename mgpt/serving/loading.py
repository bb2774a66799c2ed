"""Loads trained weights, from a folder or by reference from a store, into a predictor. Every file is verified before it
is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.models.loading import local_folder
from mgpt.storage import Store
from mgpt.storage.types import WeightsReference
from mgpt.storage.weights import open_weights, resolve_location

if TYPE_CHECKING:
    from mgpt.serving.predictor import Predictor

SHIPPED = Path(__file__).parent.parent / "models" / "shapes"


def load(model: WeightsReference | Path, store: Store | None = None) -> Predictor:
    """Loads a model by the reference to its weights, or from a folder of trained weights.

    Args:
        store: holds referenced weights; default: the store they were registered in.

    Raises:
        ValueError: weights or backbones are missing, or differ from what was registered or trained on.
    """
    if isinstance(model, Path):
        return load_weights(model)
    store = store or Store(model.root)
    backbones = {name: resolve_location(location, store) for name, location in model.backbones.items()}
    with open_weights(model, store) as folder:
        return load_weights(folder, backbones)


def load_weights(folder: Path, backbones: Mapping[str, str] | None = None) -> Predictor:
    """Trained weights as `save_trainable` wrote them, on their backbones, in evaluation mode; on the GPU where there is
    one.

    Args:
        backbones: folder or URI of each base by name, where the one noted in the weights' config.json does not hold any
            more.

    Raises:
        ValueError: the folder is not such a folder, a base cannot be found, or a base's hash is another than the one
            trained on.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; give a folder of trained weights, or models:/NAME@champion")
    import torch

    from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
    from mgpt.serving.predictor import Predictor

    wanted = json.loads(path.read_text(encoding="utf-8"))["backbones"]
    found = {name: backbone_folder(name, base, (backbones or {}).get(name)) for name, base in wanted.items()}
    model = MiniGPTForConditionalGeneration.from_trainable(folder, backbones=found)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(model, MiniGPTProcessor.from_pretrained(folder), model.config.prompt_format)


def backbone_folder(name: str, base: Mapping[str, str], place: str | None = None) -> Path:
    """A frozen base as a local folder: from `place`, else from where it was trained, else among those that ship.

    Its hash is compared when it is loaded.

    Raises:
        ValueError: it is in none of these places.
    """
    places = [uri for uri in (place, base.get("uri"), str(SHIPPED / name)) if uri]
    for uri in places:
        if Store(uri).exists(f"{uri}/config.json"):
            return local_folder(uri)
    known = f"{base.get('id')}, sha256 {str(base.get('sha256'))[:12]}"
    raise ValueError(f"base {name!r} ({known}) is in none of {', '.join(places)}; run the download stage")
