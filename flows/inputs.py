"""The bases that `download` stored, as later stages find them."""

from __future__ import annotations

from mgpt.config.models import ModelSettings
from mgpt.pipeline.runner import StageContext
from mgpt.storage import Manifest


def model_settings(context: StageContext, system: str) -> ModelSettings:
    """The settings of a system's model."""
    return context.settings.models[system]


def bases(context: StageContext, system: str) -> dict[str, str]:
    """Folder or URI of each base of a system by part: `SOURCE/FOLDER` of the download manifest."""
    from mgpt.download import base_folders

    manifest, model = Manifest.load(context.result("download") / "manifest.json"), model_settings(context, system)
    return base_folders(manifest, model.bases, context.store)
