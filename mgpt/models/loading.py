"""Where a training starts, as something that can be sent to workers: backbones, and the weights of the stage before or how to make fresh
ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt.storage import Store, is_remote

if TYPE_CHECKING:
    from mgpt.models import MiniGPTConfig, MiniGPTForConditionalGeneration, MiniGPTProcessor
    from mgpt.models.encoder import EncoderSpec


@dataclass(frozen=True)
class Start:
    """`backbones` are folders or URIs by part; `weights` the folder or URI of trained weights, or None for a fresh model made with `fresh`,
    the keywords of `MiniGPTForConditionalGeneration.from_bases`. `loading` are those settings of a model that say how it is held in
    memory, whatever it starts from: `precision`, `quantization`, `attn_implementation`, `checkpoint_vision`, `checkpoint_language`."""

    backbones: dict[str, str]
    weights: str | None
    fresh: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)

    def model(self) -> MiniGPTForConditionalGeneration:
        """The model, ready to train. Raises ValueError when the weights were trained on other backbones."""
        from mgpt.models import MiniGPTForConditionalGeneration as Model
        from mgpt.models.backbones import PRECISIONS

        backbones = {part: str(local_folder(uri)) for part, uri in self.backbones.items()}
        held: dict[str, Any] = {name: self.loading.get(name) for name in ("quantization", "attn_implementation")}
        held["dtype"] = PRECISIONS[self.loading.get("precision", "fp32")]
        if self.weights is None:
            model = Model.from_backbones(**backbones, **self.fresh, **held)
        else:
            model = Model.from_trainable(local_folder(self.weights), backbones=backbones, **held)
        wanted = {part: bool(self.loading.get(f"checkpoint_{part}")) for part in ("vision", "language")}
        if any(wanted.values()):
            model.set_activation_checkpointing(**wanted)
        return model

    def encoder(self) -> EncoderSpec:
        """The frozen part, without loading it."""
        from mgpt.models.assembly import read_config
        from mgpt.models.encoder import EncoderSpec

        backbones = {part: local_folder(uri) for part, uri in self.backbones.items()}
        config = self._fresh_config(backbones) if self.weights is None else read_config(local_folder(self.weights))
        return EncoderSpec.of(config, backbones, self.loading.get("precision", "fp32"))

    def _fresh_config(self, backbones: dict[str, Path]) -> MiniGPTConfig:
        from mgpt.models import BackboneReference
        from mgpt.models.assembly import config_from_backbones

        options: dict[str, Any] = {name: value for name, value in self.fresh.items() if name in ("merge", "image_size")}
        unread = {part: BackboneReference("", "", "") for part in backbones}  # hashes would read every weight
        return config_from_backbones(**{**backbones, **options}, references=unread)

    def processor(self) -> MiniGPTProcessor:
        """The processor, without loading the model."""
        from mgpt.models import MiniGPTProcessor

        if self.weights is not None:
            return MiniGPTProcessor.from_pretrained(local_folder(self.weights))
        backbones = {part: local_folder(uri) for part, uri in self.backbones.items()}
        return MiniGPTProcessor.from_config(self._fresh_config(backbones), backbones["language"])


def local_folder(uri: str) -> Path:
    """A local folder as it is; a remote one as a copy, fetched once a machine."""
    if not is_remote(uri):
        return Path(uri)
    target = Path(tempfile.gettempdir()) / f"mgpt-{os.getuid()}" / hashlib.sha256(uri.encode()).hexdigest()[:24]
    if not target.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=target.parent))
        Store(uri).fetch_folder(uri, part)
        try:
            part.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return target
