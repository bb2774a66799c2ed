"""The data card of curated data with the exact text that a model trains on: every token, the supervised ones marked.

Apart from the `curate` stage, whose outputs would otherwise hang on each model's model code and prompt format.
"""

from __future__ import annotations

import json
from pathlib import Path

from mgpt.config import Settings, load, section
from mgpt.storage import Manifest, Store, write_atomic

STAGES = ("multitask", "instruct", "pretrain")  # the first that trains a model shows its prompt format


def training_card(project: Path, model_name: str, out: Path, stage: str | None = None) -> Path:
    """Writes the card of the project's curated data as `model` sees it in a training stage.

    Raises ValueError when the model, the stage or curated data is not there.
    """
    from mgpt.curation.dataset_stats import collect_stats, token_marks
    from mgpt.reporting.data_card import card_html

    settings = load(project / "params.yaml")
    prompt_format = _format(settings, model_name, stage)
    curated = project / "results" / "curate"
    if not (curated / "manifest.json").is_file():
        raise ValueError(f"{curated / 'manifest.json'} is not there; run `dvc repro curate` first")
    store = Store(settings.storage.root)
    facts = collect_stats(store, Manifest.load(curated / "manifest.json").entries, settings.curate.card_samples)
    report = json.loads((curated / "metrics.json").read_text(encoding="utf-8"))
    mark = token_marks(_processor(project, settings, model_name, store), prompt_format)
    write_atomic(out, card_html(report, facts, [], mark).encode())
    return out


def _format(settings: Settings, model_name: str, stage: str | None) -> str:
    training = [name for name in STAGES if stage in (None, name) and model_name in getattr(settings, name)]
    if not training:
        known = ", ".join(f"{name} {one}" for name in STAGES for one in getattr(settings, name))
        raise ValueError(f"{stage or 'no stage'}: does not train {model_name}; there are: {known}")
    return str(section(settings, training[0], model_name).format)


def _processor(project: Path, settings: Settings, model_name: str, store: Store) -> object:
    from mgpt.download import backbone_folders
    from mgpt.models.loading import Start

    manifest, model = Manifest.load(project / "results" / "download" / "manifest.json"), settings.models[model_name]
    return Start(
        backbone_folders(manifest, model.backbones, store), None, model.model_dump(include={"merge", "image_size"})
    ).processor()
