"""Loads models: backbones, trained weights, precision, quantization and attention in, model and processor out.

Training, evaluation, serving and the registry all load through `ModelSpec`. Importing this module is cheap (no
torch), so that a driver or client can build specs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt.storage import Store, is_remote

if TYPE_CHECKING:
    from mgpt.models.configuration_minigpt import MiniGPTConfig
    from mgpt.models.encoder import EncoderSpec
    from mgpt.models.modeling_minigpt import MiniGPTForConditionalGeneration
    from mgpt.models.processing_minigpt import MiniGPTProcessor

SHIPPED_BACKBONES = Path(__file__).with_name("shapes")


@dataclass(frozen=True)
class ModelSpec:
    """A model as something that can be sent to another process.

    Attributes:
        backbones: folder or URI of each backbone by name (`vision`, `language`, `qformer`). For trained weights, one
            that is left out is looked up as in `find_backbone`.
        weights: folder or URI of trained weights, or None for a newly initialised model.
        init: options of a newly initialised model: keywords of `MiniGPTForConditionalGeneration.from_backbones`.
        loading: `precision` of the frozen backbones (a key of `PRECISIONS`), `quantization` of the language model,
            `attn_implementation`, and `checkpoint_vision`, `checkpoint_language` for activation checkpointing.
    """

    backbones: Mapping[str, str]
    weights: str | None
    init: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)

    def load_model(self, device: Any = None) -> MiniGPTForConditionalGeneration:
        """Returns the model in evaluation mode, on `device` if given.

        Raises ValueError when a backbone cannot be found, or the weights were trained on other backbones.
        """
        from mgpt.models import backbones, modeling_minigpt

        options: dict[str, Any] = {name: self.loading.get(name) for name in ("quantization", "attn_implementation")}
        options["dtype"] = backbones.PRECISIONS[self.loading.get("precision", "fp32")]
        folders: dict[str, Any] = dict(self.backbone_folders())
        model_class = modeling_minigpt.MiniGPTForConditionalGeneration
        if self.weights is None:
            model = model_class.from_backbones(**folders, **self.init, **options)
        else:
            model = model_class.from_trainable(local_folder(self.weights), folders, **options)
        checkpointing = {name: bool(self.loading.get(f"checkpoint_{name}")) for name in ("vision", "language")}
        if any(checkpointing.values()):
            model.set_activation_checkpointing(**checkpointing)
        return model if device is None else model.to(device)

    def load_processor(self) -> MiniGPTProcessor:
        """Returns the processor; loads no weights."""
        from mgpt.models.processing_minigpt import MiniGPTProcessor

        if self.weights is not None:
            return MiniGPTProcessor.from_pretrained(local_folder(self.weights))
        return MiniGPTProcessor.from_config(self._config(), self.backbone_folders()["language"])

    def encoder_spec(self) -> EncoderSpec:
        """Returns the description of the frozen image encoder; loads no weights."""
        from mgpt.models.encoder import EncoderSpec

        return EncoderSpec.from_config(self._config(), self.backbone_folders(), self.loading.get("precision", "fp32"))

    def backbone_folders(self) -> dict[str, Path]:
        """Returns the local folder of each backbone. Raises ValueError for one that cannot be found."""
        if self.weights is None:
            return {name: local_folder(uri) for name, uri in self.backbones.items()}
        recorded: dict[str, Any] = {name: {} for name in self.backbones} | self._config().backbones
        return {name: find_backbone(name, entry, self.backbones.get(name)) for name, entry in recorded.items()}

    def _config(self) -> MiniGPTConfig:
        from mgpt.models import backbones, configuration_minigpt, weights

        if self.weights is not None:
            return weights.read_config(local_folder(self.weights))
        options: dict[str, Any] = {name: self.init[name] for name in ("merge", "image_size") if name in self.init}
        # A hash would read every weight.
        unread = {name: configuration_minigpt.BackboneReference("", "", "") for name in self.backbones}
        folders: dict[str, Any] = dict(self.backbone_folders())
        return backbones.config_from_backbones(**folders, **options, references=unread)


def find_backbone(name: str, recorded: Mapping[str, str], given: str | None = None) -> Path:
    """Returns the local folder of a backbone: `given`, else where it was trained, else one that ships with mgpt.

    recorded: the backbone's entry in the weights' config.json. Its hash is compared when it is loaded.
    Raises ValueError when none of these locations holds it.
    """
    locations = [uri for uri in (given, recorded.get("uri"), str(SHIPPED_BACKBONES / name)) if uri]
    for uri in locations:
        if Store(uri).exists(f"{uri}/config.json"):
            return local_folder(uri)
    known = f"{recorded.get('id')}, sha256 {str(recorded.get('sha256'))[:12]}"
    raise ValueError(
        f"backbone {name!r} ({known}) is in none of {', '.join(locations)}; run the download stage, or give its folder"
    )


def local_folder(uri: str | Path) -> Path:
    """Returns a local folder as it is, and a copy of a remote one, which is fetched once per machine."""
    if not is_remote(str(uri)):
        return Path(uri)
    uri = str(uri)
    target = Path(tempfile.gettempdir()) / f"mgpt-{os.getuid()}" / hashlib.sha256(uri.encode()).hexdigest()[:24]
    if not target.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        Store(uri).fetch_folder(uri, staging)
        try:
            staging.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(staging)
    return target


def default_device() -> str:
    """Returns "cuda" where there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
