"""The data card of curated data with the exact text that a system trains on: every token, the supervised ones marked.

Apart from the `curate` stage, whose outputs would otherwise hang on each system's model code and prompt format.
"""

from __future__ import annotations

import json
from pathlib import Path

from mgpt.config import Settings, load, section
from mgpt.storage import Manifest, Store, write_atomic

STAGES = ("multitask", "instruct", "pretrain")  # the first that trains a system shows its prompt format


def training_card(project: Path, system: str, out: Path, stage: str | None = None) -> Path:
    """Writes the card of the project's curated data as `system` sees it in a training stage.

    Raises ValueError when the system, the stage or curated data is not there.
    """
    from mgpt.curation.dataset_stats import gather, token_marks
    from mgpt.reporting.data_card import card_html

    settings = load(project / "params.yaml")
    prompt_format = _format(settings, system, stage)
    curated = project / "results" / "curate"
    if not (curated / "manifest.json").is_file():
        raise ValueError(f"{curated / 'manifest.json'} is not there; run `dvc repro curate` first")
    store = Store(settings.storage.root)
    facts = gather(store, Manifest.load(curated / "manifest.json").entries, settings.curate.card_samples)
    report = json.loads((curated / "metrics.json").read_text(encoding="utf-8"))
    mark = token_marks(_processor(project, settings, system, store), prompt_format)
    write_atomic(out, card_html(report, facts, [], mark).encode())
    return out


def _format(settings: Settings, system: str, stage: str | None) -> str:
    training = [name for name in STAGES if stage in (None, name) and system in getattr(settings, name)]
    if not training:
        known = ", ".join(f"{name} {one}" for name in STAGES for one in getattr(settings, name))
        raise ValueError(f"{stage or 'no stage'}: does not train {system}; there are: {known}")
    return str(section(settings, training[0], system).format)


def _processor(project: Path, settings: Settings, system: str, store: Store) -> object:
    from mgpt.download import base_folders
    from mgpt.models.loading import Start

    manifest, model = Manifest.load(project / "results" / "download" / "manifest.json"), settings.models[system]
    return Start(
        base_folders(manifest, model.bases, store), None, model.model_dump(include={"merge", "image_size"})
    ).processor()
