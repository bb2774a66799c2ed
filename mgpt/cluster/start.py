"""Where a training starts, as something that can be sent to workers: bases, and the weights of the stage before or how to make fresh
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
    from mgpt.model import MiniGPTConfig, MiniGPTForConditionalGeneration, MiniGPTProcessor


@dataclass(frozen=True)
class Start:
    """`bases` are folders or URIs by part; `weights` the folder or URI of trained weights, or None for a fresh model made with `fresh`,
    the keywords of `MiniGPTForConditionalGeneration.from_bases`."""

    bases: dict[str, str]
    weights: str | None
    fresh: dict[str, Any] = field(default_factory=dict)

    def model(self) -> MiniGPTForConditionalGeneration:
        """The model, ready to train. Raises ValueError when the weights were trained on other bases."""
        from mgpt.model import MiniGPTForConditionalGeneration

        bases = {part: str(local_folder(uri)) for part, uri in self.bases.items()}
        if self.weights is None:
            return MiniGPTForConditionalGeneration.from_bases(**bases, **self.fresh)
        return MiniGPTForConditionalGeneration.from_trainable(local_folder(self.weights), bases=bases)

    def processor(self) -> MiniGPTProcessor:
        """The processor, without loading the model."""
        from mgpt.model import MiniGPTProcessor

        if self.weights is not None:
            return MiniGPTProcessor.from_pretrained(local_folder(self.weights))
        bases = {part: local_folder(uri) for part, uri in self.bases.items()}
        return MiniGPTProcessor.from_config(_fresh_config(bases, self.fresh.get("merge", 4)), bases["language"])


def _fresh_config(bases: dict[str, Path], merge: int) -> MiniGPTConfig:
    """The configuration of a fresh model, from its bases' headers alone."""
    from safetensors import safe_open
    from transformers import AutoConfig

    from mgpt.model import MiniGPTConfig

    configs = {part: AutoConfig.from_pretrained(folder) for part, folder in bases.items()}
    queries = 0
    if "qformer" in bases:
        with safe_open(bases["qformer"] / "query_tokens.safetensors", "pt") as file:
            queries = file.get_slice("query_tokens").get_shape()[1]
    return MiniGPTConfig(configs["vision"], configs["language"], configs.get("qformer"), num_query_tokens=queries, merge=merge)


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
