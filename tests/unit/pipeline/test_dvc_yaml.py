"""dvc.yaml is generated, and equal to what the params file and the code give."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mgpt.config import Settings, load_settings
from mgpt.pipeline.code import CodeBase
from mgpt.pipeline.dvc_yaml import COMMAND, check_dvc_yaml, render
from mgpt.pipeline.stages import pipeline_stages
from tests.fixtures.pipeline import ROOT, installed_code


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(ROOT / "params.yaml", {})


def test_dvc_yaml_is_up_to_date(settings: Settings) -> None:
    assert (ROOT / "dvc.yaml").read_text() == render(settings, ROOT, installed_code()), f"run `{COMMAND}`"


def test_dvc_reads_the_stages_of_the_params_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text(render(settings, tmp_path, CodeBase({})))
    monkeypatch.chdir(tmp_path)  # DVC's names of stages are relative to it
    found = {stage.addressing: stage for stage in Repo.init(str(tmp_path), no_scm=True).index.stages}
    expected = {one.name: one for one in pipeline_stages(settings)}
    assert set(found) == set(expected)
    for name, stage in found.items():
        assert stage.cmd == expected[name].command
        assert {one.path for one in expected[name].inputs} <= {str(dep.def_path) for dep in stage.deps}
        written = {f"{expected[name].folder}/{file}" for file in expected[name].written}
        assert {str(out.def_path) for out in stage.outs} == written


@pytest.mark.parametrize("models", [["minigpt4"], ["minigpt4", "minigpt-v2"]])
def test_gallery_that_a_model_does_not_write_is_no_output(models: list[str]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for model_name in models:
        content["evaluate"][model_name]["images"] = 0
    rendered = yaml.safe_load(render(Settings.model_validate(content), ROOT, CodeBase({})))
    outputs = rendered["stages"]["evaluate"]["do"]["outs"]
    assert "results/evaluate/${key}/scores.txt" in outputs
    assert not [output for output in outputs if output.endswith(".png")]


def test_file_of_other_params_is_refused(settings: Settings, tmp_path: Path) -> None:
    check_dvc_yaml(settings, tmp_path)
    content = yaml.safe_load(render(settings, ROOT, installed_code()))
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(content))
    check_dvc_yaml(settings, tmp_path)
    del content["stages"]["pretrain"]["foreach"]["minigpt4"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=COMMAND):
        check_dvc_yaml(settings, tmp_path)
