"""A fingerprint changes with everything that can change the result, and with nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mgpt.pipeline.fingerprint import FILE_PARAMS, Fingerprints, input_digests, param_values
from mgpt.pipeline.stages import find_stage
from mgpt.storage import Manifest
from tests.fixtures.pipeline import FinishedProject, entry, finished_project


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> FinishedProject:
    return finished_project(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def project(template: FinishedProject, tmp_path: Path) -> FinishedProject:
    shutil.copytree(template.folder, tmp_path, dirs_exist_ok=True)
    return FinishedProject(tmp_path, template.code)


def of(project: FinishedProject, stage: str = "pretrain", model_name: str | None = "minigpt4") -> str:
    return project.fingerprints.fingerprint(find_stage(project.settings, stage, model_name))


def change(project: FinishedProject, dotted: str, value: Any) -> None:
    content = project.params()
    *above, last = dotted.split(".")
    place = content
    for part in above:
        place = place[part]
    place[last] = value
    project.write_params(content)


def test_params_of_other_stages_do_not_count(project: FinishedProject) -> None:
    before = of(project)
    change(project, "tracking.experiment", "other")
    change(project, "storage.root", "elsewhere")
    change(project, "describe.images", 7)
    change(project, "pretrain.minigpt-v2.seed", 43)
    assert of(project) == before


def test_declared_params_count(project: FinishedProject) -> None:
    before = of(project)
    change(project, "pretrain.minigpt4.seed", 43)
    assert of(project) != before
    change(project, "pretrain.minigpt4.seed", 42)
    assert of(project) == before, "a default that is written out changes nothing"
    change(project, "models.minigpt4.seed", 1)
    assert of(project) != before


def test_training_does_not_see_sources(project: FinishedProject) -> None:
    stage = find_stage(project.settings, "pretrain", "minigpt4")
    assert set(param_values(stage, project.settings)) == {"models.minigpt4", "pretrain.minigpt4"}


def test_mirror_repeats_download_alone(project: FinishedProject) -> None:
    before = [of(project, stage, None) for stage in ("download", "curate")]
    change(project, "sources.world.success_floor", 0.5)
    after = [of(project, stage, None) for stage in ("download", "curate")]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_inputs_count_by_content(project: FinishedProject) -> None:
    path, before = project.folder / "results/curate/manifest.json", of(project)
    entries = Manifest.load(path).entries
    Manifest([replace(one, uri=f"elsewhere/{one.name}") for one in entries]).save(path)
    assert of(project) == before, "where files lie does not count"
    Manifest([replace(one, sha256="f" * 64) if one.name.startswith("laion/train") else one for one in entries]).save(
        path
    )
    assert of(project) != before


def test_entries_that_a_stage_does_not_use_do_not_count(project: FinishedProject) -> None:
    path, before = project.folder / "results/curate/manifest.json", of(project)
    entries = [one for one in Manifest.load(path).entries if one.meta["split"] == "train"]
    Manifest([*entries, entry("new/train/0.parquet", dataset="new", split="train")]).save(path)
    assert of(project) == before


def test_weights_of_the_stage_before_count(project: FinishedProject) -> None:
    before = of(project, "instruct")
    (project.folder / "results/pretrain/minigpt4/weights/trainable.safetensors").write_text("other")
    assert of(project, "instruct") != before


def test_missing_input_names_the_command(project: FinishedProject) -> None:
    shutil.rmtree(project.folder / "results/multitask/minigpt-v2")
    stage = find_stage(project.settings, "instruct", "minigpt-v2")
    with pytest.raises(ValueError, match=r"results/multitask/minigpt-v2/weights.*dvc repro instruct@minigpt-v2"):
        input_digests(project.folder, stage)


def test_files_that_params_name_count_by_content(project: FinishedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    (project.folder / "words.yaml").write_text("nouns: {a: []}")
    (project.folder / "review.csv").write_text("key\n")
    change(project, "describe.filters.vocabulary", "words.yaml")
    change(project, "describe.review", "review.csv")
    before = of(project, "describe", None)
    (project.folder / "words.yaml").write_text("nouns: {b: []}")
    after = of(project, "describe", None)
    assert after != before
    (project.folder / "review.csv").write_text("key\n1\n")
    assert of(project, "describe", None) != after


def test_every_setting_that_names_a_file_is_known(project: FinishedProject) -> None:
    """A new one of these names must be added to FILE_PARAMS, or a change of the file would go unseen."""

    def walk(value: Any, prefix: str) -> set[str]:
        if isinstance(value, dict):
            return set().union(*(walk(one, f"{prefix}.{key}") for key, one in value.items()))
        return {prefix} if prefix.rpartition(".")[2] in ("vocabulary", "review", "task_files") else set()

    content = project.settings.model_dump(by_alias=True)
    found = set().union(*(walk(content[name], name) for name in content))
    by_model = {key.replace(f".{name}.", ".*.") for key in found for name in content["models"] if f".{name}." in key}
    plain = {key for key in found if not any(f".{name}." in key for name in content["models"])}
    assert by_model | plain == set(FILE_PARAMS)


def test_images_added_to_a_local_source_count(project: FinishedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    (project.folder / "photographs").mkdir()
    (project.folder / "photographs" / "a.jpg").write_bytes(b"a")
    change(project, "sources.mine", {"locations": ["photographs"], "datasets": {"mine": {"reader": "jsonl"}}})
    before = of(project, "download", None)
    (project.folder / "photographs" / "b.jpg").write_bytes(b"b")
    assert of(project, "download", None) != before


def test_the_same_project_elsewhere_has_the_same_fingerprints(project: FinishedProject, tmp_path: Path) -> None:
    copy = tmp_path.parent / "copy"
    shutil.copytree(project.folder, copy)
    stage = find_stage(project.settings, "evaluate", "minigpt-v2")
    elsewhere = Fingerprints(copy, project.settings, project.code)
    assert elsewhere.fingerprint(stage) == project.fingerprints.fingerprint(stage)


def test_changed_work_before_is_named_in_order(project: FinishedProject) -> None:
    assert project.unfinished() == set()
    change(project, "pretrain.minigpt-v2.steps", 7)
    change(project, "pretrain.minigpt-v2.warmup_steps", 1)
    stage = find_stage(project.settings, "evaluate", "minigpt-v2")
    expected = ["pretrain@minigpt-v2", "multitask@minigpt-v2", "instruct@minigpt-v2"]
    assert project.fingerprints.changed_before(stage) == expected
    assert project.fingerprints.changed_before(find_stage(project.settings, "evaluate", "minigpt4")) == []
