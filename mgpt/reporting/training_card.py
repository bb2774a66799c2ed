"""The data card with the exact text that a model trains on: every token, with the supervised ones marked.

It is separate from the `curate` stage, whose outputs would otherwise depend on each model's code and prompt format.
"""

from __future__ import annotations

import json
from pathlib import Path

from mgpt.config import Settings, load_settings, section
from mgpt.curation.dataset_stats import collect_stats, token_marks
from mgpt.data.extract import backbone_folders
from mgpt.models.loading import ModelSpec
from mgpt.reporting.data_card import write_data_card
from mgpt.storage import Manifest, Store

STAGES = ("multitask", "instruct", "pretrain")  # the first that trains a model decides its prompt format


def training_card(project: Path, model_name: str, out: Path, stage: str | None = None) -> Path:
    """Writes the card of the project's curated data as a model sees it in a training stage.

    Raises:
        ValueError: no such model or stage, or the data is not curated yet.
    """
    settings = load_settings(project / "params.yaml")
    prompt_format = _prompt_format(settings, model_name, stage)
    curated = project / "results" / "curate"
    if not (curated / "manifest.json").is_file():
        raise ValueError(f"{curated / 'manifest.json'} does not exist; run `dvc repro curate` first")
    store = Store(settings.storage.root)
    facts = collect_stats(Manifest.load(curated / "manifest.json").entries, settings.curate.card_samples)
    report = json.loads((curated / "metrics.json").read_text(encoding="utf-8"))
    mark = token_marks(_processor(project, settings, model_name, store), prompt_format)
    write_data_card(out, report, facts, [], mark)
    return out


def _prompt_format(settings: Settings, model_name: str, stage: str | None) -> str:
    training = [name for name in STAGES if stage in (None, name) and model_name in getattr(settings, name)]
    if not training:
        known = ", ".join(f"{name} {model}" for name in STAGES for model in getattr(settings, name))
        raise ValueError(f"{stage or 'no stage'} does not train {model_name}; stages and models are: {known}")
    return str(section(settings, training[0], model_name).format)


def _processor(project: Path, settings: Settings, model_name: str, store: Store) -> object:
    manifest = Manifest.load(project / "results" / "download" / "manifest.json")
    model = settings.models[model_name]
    folders = backbone_folders(manifest, model.backbones, store)
    return ModelSpec(folders, None, model.model_dump(include={"merge", "image_size"})).load_processor()
