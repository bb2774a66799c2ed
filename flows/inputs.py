"""The backbones that `download` stored, as later stages find them."""

from __future__ import annotations

from mgpt.data.extract import backbone_folders
from mgpt.pipeline.runner import StageContext


def backbones(context: StageContext, model_name: str) -> dict[str, str]:
    """Returns the folder or URI of each of a model's backbones by part; the params name `SOURCE/FOLDER` of the download
    manifest.
    """
    return backbone_folders(context.manifest("download"), context.settings.models[model_name].backbones, context.store)
