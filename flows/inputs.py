"""The backbones that `download` stored, as later stages find them."""

from __future__ import annotations

from mgpt.config.models import ModelSettings
from mgpt.pipeline.runner import StageContext
from mgpt.storage import Manifest


def model_settings(context: StageContext, model_name: str) -> ModelSettings:
    """The settings of a model's model."""
    return context.settings.models[model_name]


def backbones(context: StageContext, model_name: str) -> dict[str, str]:
    """Folder or URI of each base of a model by part: `SOURCE/FOLDER` of the download manifest."""
    from mgpt.download import backbone_folders

    manifest, model = Manifest.load(context.result("download") / "manifest.json"), model_settings(context, model_name)
    return backbone_folders(manifest, model.backbones, context.store)
