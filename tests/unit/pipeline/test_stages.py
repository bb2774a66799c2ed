"""Stages follow from the params file: what is not in it is no stage, and inputs are what a stage uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpt.config import Settings, load_settings
from mgpt.pipeline.stages import Selection, find_stage, pipeline_stages
from mgpt.storage import Entry
from tests.fixtures.pipeline import ROOT, FinishedProject, entry, finished_project

ALL = """
    download curate pretrain@minigpt4 pretrain@minigpt-v2 describe multitask@minigpt-v2 instruct@minigpt4
    instruct@minigpt-v2 evaluate@minigpt4 evaluate@minigpt-v2 promote@minigpt4 promote@minigpt-v2
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(ROOT / "params.yaml", {})


@pytest.fixture
def project(tmp_path: Path) -> FinishedProject:
    return finished_project(tmp_path)


def reduced(content: dict[str, Any], sections: tuple[str, ...], models: tuple[str, ...]) -> Settings:
    """Settings without the other sections and models."""
    everything = Settings.model_validate(content)
    changes: dict[str, Any] = {}
    for name in ("pretrain", "multitask", "instruct", "evaluate", "promote"):
        present = content.get(name, {}) if name in sections else {}
        whole = getattr(everything, name)
        by_model = {key: getattr(whole, key.replace("-", "_"), None) or whole[key] for key in present if key in models}
        changes[name] = by_model
    kept = everything.model_copy(update=changes)
    return kept if "describe" in sections else _without(kept, "describe")


def _without(settings: Settings, name: str) -> Settings:
    settings.model_fields_set.discard(name)
    return settings


def test_default_params_have_every_stage(settings: Settings) -> None:
    assert [one.name for one in pipeline_stages(settings)] == ALL


def test_inputs_follow_the_mixture(settings: Settings) -> None:
    paths = {one.name: [entry.path for entry in one.inputs] for one in pipeline_stages(settings)}
    assert paths["pretrain@minigpt4"] == ["results/download/manifest.json", "results/curate/manifest.json"]
    assert "results/describe/manifest.json" in paths["instruct@minigpt4"]
    assert "results/curate/manifest.json" not in paths["instruct@minigpt4"]
    assert paths["instruct@minigpt4"][-1] == "results/pretrain/minigpt4/weights"
    assert paths["instruct@minigpt-v2"][-1] == "results/multitask/minigpt-v2/weights"
    assert [path for path in paths["evaluate@minigpt4"] if "weights" in path] == [
        "results/pretrain/minigpt4/weights",
        "results/instruct/minigpt4/weights",
    ]


def test_pretrain_alone_is_a_pipeline() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = reduced(content, ("pretrain",), ("minigpt4", "minigpt-v2"))
    assert [one.name for one in pipeline_stages(settings)] == ALL[:4]


def test_one_model_alone_is_a_pipeline() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = reduced(
        content, ("pretrain", "multitask", "instruct", "evaluate", "promote", "describe"), ("minigpt-v2",)
    )
    names = [one.name for one in pipeline_stages(settings)]
    assert names == [name for name in ALL if name != "describe" and not name.endswith("@minigpt4")]


def test_without_multitask_instruct_starts_from_pretrain() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = reduced(content, ("pretrain", "instruct"), ("minigpt-v2",))
    (stage,) = [one for one in pipeline_stages(settings) if one.stage == "instruct"]
    assert stage.inputs[-1].path == "results/pretrain/minigpt-v2/weights"


def test_evaluation_without_images_writes_no_gallery() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["evaluate"]["minigpt4"]["images"] = 0
    settings = Settings.model_validate(content)
    assert "images.png" not in find_stage(settings, "evaluate", "minigpt4").written
    assert "images.png" in find_stage(settings, "evaluate", "minigpt-v2").written


def test_unknown_stage_is_refused_with_the_known(settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"pretrain@minigpt4"):
        find_stage(settings, "pretrain", None)


def names(entries: list[Entry]) -> set[str]:
    return {one.name for one in entries}


def test_training_sees_the_train_split_of_its_mixture(project: FinishedProject) -> None:
    stage = find_stage(project.settings, "pretrain", "minigpt4")
    assert names(stage.input("curate").entries(project.folder)) == {"laion/train/0.parquet", "cc_sbu/train/0.parquet"}
    backbones = names(find_stage(project.settings, "pretrain", "minigpt-v2").input("download").entries(project.folder))
    assert backbones == {"backbones/vision/config.json", "backbones/language/config.json"}


def test_evaluation_sees_its_datasets_and_splits(project: FinishedProject) -> None:
    stage = find_stage(project.settings, "evaluate", "minigpt-v2")
    entries = stage.input("curate").entries(project.folder)
    settings = project.settings.evaluate
    assert {one.meta["split"] for one in entries} <= {"test", "testA", "testB"}
    assert "refcoco/testA/0.parquet" in names(entries)
    assert settings is not None


def test_curation_sees_files_of_sources_with_datasets(project: FinishedProject) -> None:
    entries = find_stage(project.settings, "curate", None).input("download").entries(project.folder)
    assert names(entries) == {"world/data.json"}


def test_archives_of_a_backbone_source_count_whole() -> None:
    packed = [entry("b/all.tar", source="b", unpack=True), entry("b/x/config.json", source="b", unpack=False)]
    other = [entry("c/x/config.json", source="c", unpack=False), entry("c/y/config.json", source="c", unpack=False)]
    assert names(Selection(folders=("b/x", "c/x")).of([*packed, *other])) == {*names(packed), "c/x/config.json"}


def test_nothing_selected_is_reported_with_what_there_is(project: FinishedProject) -> None:
    content = project.params()
    content["sources"]["world"]["datasets"]["new"] = {"reader": "laion"}
    content["pretrain"]["minigpt4"] |= {"mixture": {"new": 1}, "tasks": {}}
    project.write_params(content)
    stage = find_stage(project.settings, "pretrain", "minigpt4")
    with pytest.raises(ValueError, match=r"nothing of datasets new, splits train.*laion/train"):
        stage.input("curate").entries(project.folder)
