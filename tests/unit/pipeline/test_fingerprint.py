"""A fingerprint changes with everything that the work depends on, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mgpt.config import load_settings
from mgpt.pipeline.fingerprint import declaration, declarations, digest, identify
from mgpt.storage import Manifest, Store

ROOT = Path(__file__).parents[3]
PIPELINE = """
stages:
  first:
    cmd: python -m flows first
    deps: [code.py]
    params: [download]
    outs: [results/first/manifest.json]
  second:
    foreach:
      minigpt4: {data: results/first/manifest.json}
      minigpt-v2: {data: results/other/weights}
    do:
      cmd: python -m flows second ${key}
      deps: ["code.py", "package", "${item.data}"]
      params: ["pretrain.${key}"]
      outs: ["results/second/${key}/weights"]
      metrics: ["results/second/${key}/metrics.json"]
      plots: [{"results/second/${key}/curve.csv": {x: step}}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("a")
    store = Store(str(tmp_path / "store"))
    store.write(store.uri("x"), b"x")
    Manifest([store.entry("x", store.uri("x"))]).save(tmp_path / "results/first/manifest.json")
    return tmp_path


def of(project: Path, params: Path = ROOT / "params.yaml", model_name: str = "minigpt4", **extra: str) -> str:
    return identify(project, declaration(project, "second", model_name), load_settings(params, {}), extra)


def test_a_declaration_is_what_dvc_yaml_says(project: Path) -> None:
    assert [one.name for one in declarations(project)] == ["first", "second@minigpt4", "second@minigpt-v2"]
    second = declaration(project, "second", "minigpt-v2")
    assert second.params == ("pretrain.minigpt-v2",)
    assert second.code == ("code.py", "package")
    assert second.inputs == ("results/other/weights",)
    assert second.outputs == tuple(
        f"results/second/minigpt-v2/{name}" for name in ("weights", "metrics.json", "curve.csv")
    )
    assert second.folder == "results/second/minigpt-v2"


def test_an_unknown_stage_is_refused_with_the_known(project: Path) -> None:
    with pytest.raises(ValueError, match="second@minigpt4"):
        declaration(project, "second", None)


def test_a_missing_input_names_the_way_to_make_it(project: Path) -> None:
    with pytest.raises(ValueError, match=r"results/other/weights.*dvc repro"):
        of(project, model_name="minigpt-v2")


def test_a_declared_param_that_is_not_there_is_refused(project: Path) -> None:
    (project / "dvc.yaml").write_text(PIPELINE.replace("pretrain.${key}", "pretrain.${key}.nonsense"))
    with pytest.raises(ValueError, match=r"pretrain\.minigpt4\.nonsense"):
        of(project)


def test_declared_params_count_and_others_do_not(project: Path, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    before = of(project)
    (tmp_path / "other.yaml").write_text(
        text.replace("  experiment: mgpt", "  experiment: else").replace("root: store", "root: elsewhere")
    )
    assert of(project, tmp_path / "other.yaml") == before
    head, tail = text.split("pretrain:\n  minigpt4:\n", 1)
    (tmp_path / "other.yaml").write_text(head + "pretrain:\n  minigpt4:\n    seed: 43\n" + tail)
    assert of(project, tmp_path / "other.yaml") != before
    (tmp_path / "other.yaml").write_text(head + "pretrain:\n  minigpt4:\n    seed: 42\n" + tail)
    assert of(project, tmp_path / "other.yaml") == before, "a default that is written out changes nothing"


def test_code_counts_and_its_caches_do_not(project: Path) -> None:
    before = of(project)
    (project / "package" / "__pycache__").mkdir()
    (project / "package" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (project / "elsewhere.py").write_text("x")
    assert of(project) == before
    (project / "package" / "b.py").write_text("")
    assert of(project) != before


def test_inputs_count_by_content_not_by_place(project: Path) -> None:
    before = of(project)
    other = Store(str(project / "other-store"))
    other.write(other.uri("x"), b"x")
    Manifest([other.entry("x", other.uri("x"))]).save(project / "results/first/manifest.json")
    assert of(project) == before
    other.write(other.uri("x"), b"y")
    Manifest([other.entry("x", other.uri("x"))]).save(project / "results/first/manifest.json")
    assert of(project) != before


def test_extra_inputs_count(project: Path) -> None:
    assert of(project, images="1") != of(project, images="2")


def test_the_same_project_elsewhere_has_the_same_identities(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(project, copy)
    assert of(copy) == of(project)


def test_a_renamed_file_is_another_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert digest(tmp_path / "a") != before


def test_every_stage_of_the_project_declares_code_that_is_there() -> None:
    import subprocess

    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for one in declarations(ROOT):
        for path in one.code:
            assert any(name == path or name.startswith(path + "/") for name in tracked), f"{one.name} declares {path}"
