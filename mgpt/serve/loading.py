"""From a folder of trained weights, or a name in the registry, to a model that answers. Every file is verified before it is used."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt.storage import Store, is_remote

if TYPE_CHECKING:
    from mgpt.serve.predictor import Predictor

SHIPPED = Path(__file__).parent.parent / "backbones" / "shapes"
PREFIX = "models:/"


def load(reference: str, tracking_uri: str) -> Predictor:
    """A model by name (`models:/minigpt-v2@champion`, `models:/minigpt-v2/3`) or by the folder of its trained weights.

    Raises:
        ValueError: there is no such model or folder, or its files are gone or altered.
    """
    if not reference.startswith(PREFIX):
        return load_weights(Path(reference))
    from mgpt.registry.versions import find

    return load_registered(*find(tracking_uri, reference).weights)


def load_registered(folder: str, digest: str) -> Predictor:
    """Registered weights from where they are stored, compared with the digest that was registered.

    Raises:
        ValueError: a file is gone or differs, or a base does.
    """
    from mgpt.registry.versions import stored_manifest

    stored_manifest(folder, digest)
    if not is_remote(folder):
        return load_weights(Path(folder))
    with tempfile.TemporaryDirectory() as scratch:
        Store(folder).fetch_folder(folder, scratch)
        return load_weights(Path(scratch))


def load_weights(folder: Path) -> Predictor:
    """Trained weights as `save_trainable` wrote them, on their bases, in evaluation mode; on the GPU where there is one.

    Raises:
        ValueError: the folder is not such a folder, a base cannot be found, or a base's hash is another than the one trained on.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; give a folder of trained weights, or models:/NAME@champion")
    import torch

    from mgpt.model import MiniGPTForConditionalGeneration, MiniGPTProcessor
    from mgpt.serve.predictor import Predictor

    wanted = json.loads(path.read_text(encoding="utf-8"))["bases"]
    with tempfile.TemporaryDirectory() as scratch:
        bases = {name: base_folder(name, base, Path(scratch)) for name, base in wanted.items()}
        model = MiniGPTForConditionalGeneration.from_trainable(folder, bases=bases)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(model, MiniGPTProcessor.from_pretrained(folder), model.config.prompt_format)


def base_folder(name: str, base: dict[str, Any], scratch: Path) -> Path:
    """Where a frozen base is: the place it was trained from, else among those that ship. Its hash is compared when it is loaded.

    Raises:
        ValueError: it is in neither place.
    """
    uri = str(base.get("uri", ""))
    if is_remote(uri):
        Store(uri).fetch_folder(uri, scratch / name)
        return scratch / name
    for folder in (Path(uri), SHIPPED / name):
        if (folder / "config.json").is_file():
            return folder
    known = f"{base.get('id')}, sha256 {str(base.get('sha256'))[:12]}"
    raise ValueError(f"base {name!r} ({known}) is neither at {uri or '(no place named)'} nor under {SHIPPED}; run the download stage")
