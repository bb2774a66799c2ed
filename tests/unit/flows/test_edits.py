"""Stages that each kind of edit repeats: a stage is finished after an edit that cannot change its result."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt.pipeline.code import CodeBase
from mgpt.pipeline.stages import pipeline_stages
from mgpt.storage import Manifest
from tests.fixtures.pipeline import ROOT, FinishedProject, curated_entries, entry, finished_project

MODELS = ("minigpt4", "minigpt-v2")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> FinishedProject:
    """A copy of the code, and a project whose stages that code has finished."""
    folder = tmp_path_factory.mktemp("copy")
    roots = {package: folder / "code" / package for package in ("mgpt", "flows")}
    for package, root in roots.items():
        shutil.copytree(ROOT / package, root, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    return finished_project(folder / "project", CodeBase(roots))


@pytest.fixture
def project(template: FinishedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FinishedProject]:
    """The project; edits of the code are undone afterwards."""
    code = template.code.roots["mgpt"].parent
    before = {path: path.read_bytes() for path in code.rglob("*") if path.is_file()}
    shutil.copytree(template.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield FinishedProject(tmp_path, template.code)
    for path in [path for path in code.rglob("*") if path.is_file() and before.get(path) != path.read_bytes()]:
        if path in before:
            path.write_bytes(before[path])
        else:
            path.unlink()


def unfinished_after(project: FinishedProject, *edited: Path) -> set[str]:
    """The stages that are not finished with the edited modules; the others are not parsed again."""
    return FinishedProject(project.folder, project.code.without(edited)).unfinished()


def behind(project: FinishedProject, name: str) -> set[str]:
    """A stage and all that read what it makes, and so on."""
    found = {name}
    for stage in pipeline_stages(project.settings):
        if any(one.path.startswith(f"results/{other.replace('@', '/')}/") for one in stage.inputs for other in found):
            found.add(stage.name)
    return found


def add_constant(path: Path) -> None:
    path.write_text(path.read_text() + "\nEDITED = 'edited'\n")


def test_without_edits_all_is_finished(project: FinishedProject) -> None:
    assert unfinished_after(project) == set()


def test_comments_and_docstrings_repeat_nothing(project: FinishedProject) -> None:
    edited = [path for root in project.code.roots.values() for path in root.rglob("*.py")]
    for path in edited:
        text = path.read_text()
        if ast.get_docstring(ast.parse(text)):
            text = text.replace('"""', '"""Edited. ', 1)
        path.write_text(f"# a comment\n{text}\n# another\n")
    assert unfinished_after(project, *edited) == set()


@pytest.mark.parametrize(
    "package", ["cli", "config", "conversion", "pipeline", "planning", "reporting", "serving", "tracking"]
)
def test_package_that_changes_no_result_repeats_nothing(project: FinishedProject, package: str) -> None:
    edited = sorted((project.code.roots["mgpt"] / package).rglob("*.py"))
    assert edited
    for path in edited:
        add_constant(path)
    assert unfinished_after(project, *edited) == set()


def test_dataset_that_no_stage_uses_repeats_curation_alone(project: FinishedProject) -> None:
    content = project.params()
    content["sources"]["world"]["datasets"]["new"] = {"reader": "laion", "root": "laion", "images": "laion"}
    project.write_params(content)
    assert unfinished_after(project) == {"curate"}
    new = entry("new/train/1.parquet", dataset="new", split="train", rows=1)
    Manifest([*curated_entries(project.settings), new]).save(project.folder / "results/curate/manifest.json")
    assert unfinished_after(project) == {"curate"}, "nor when curation has run"


def test_byte_of_the_vocabulary_repeats_describe_and_what_follows(project: FinishedProject) -> None:
    content = project.params()
    (project.folder / "words.yaml").write_text("nouns: {circle: []}\n")
    content["describe"]["filters"]["vocabulary"] = "words.yaml"
    project.write_params(content)
    project.write_results()
    (project.folder / "words.yaml").write_text("nouns: {circle: []}\n\n")
    assert unfinished_after(project) == behind(project, "describe")


def test_shipped_vocabulary_counts_where_it_is_used(project: FinishedProject) -> None:
    add_constant(project.code.roots["mgpt"] / "data" / "vocabularies" / "shapes.yaml")
    evaluations = {f"{stage}@{name}" for stage in ("evaluate", "promote") for name in MODELS}
    assert unfinished_after(project) == behind(project, "describe") | evaluations


def test_constant_of_the_shard_writer_repeats_curation(project: FinishedProject) -> None:
    path = project.code.roots["mgpt"] / "curation" / "shards.py"
    add_constant(path)
    assert unfinished_after(project, path) == {"curate"}


def test_new_reader_repeats_curation_alone(project: FinishedProject) -> None:
    readers = project.code.roots["mgpt"] / "data" / "datasets"
    (readers / "new_reader.py").write_text("class NewReader:\n    name = 'new'\n")
    package = readers / "__init__.py"
    package.write_text(package.read_text() + "\nfrom mgpt.data.datasets.new_reader import NewReader\n")
    assert unfinished_after(project, package) == {"curate"}


@pytest.mark.parametrize(
    ("module", "first"),
    [
        ("training/trainer.py", "pretrain@minigpt4"),
        ("models/modeling_minigpt.py", "pretrain@minigpt-v2"),
        ("captioning/filters.py", "describe"),
        ("evaluation/scoring.py", "evaluate@minigpt4"),
    ],
)
def test_code_of_the_work_repeats_it_and_what_follows(project: FinishedProject, module: str, first: str) -> None:
    path = project.code.roots["mgpt"] / module
    add_constant(path)
    found = unfinished_after(project, path)
    assert found >= behind(project, first)
    assert not found & {"download", "curate"}
