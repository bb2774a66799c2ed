"""Mistakes in the params file and the environment: all at once, each with key, value, rule and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpt.config import load, section
from mgpt.config.loader import read_params
from tests.fixtures.config import refused


def test_the_default_experiment_is_right(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params))
    settings = load("params.yaml", {})
    assert (
        section(settings, "instruct", "minigpt-v2").learning_rate == params["instruct"]["minigpt-v2"]["learning_rate"]
    )


def test_five_mistakes_are_told_at_once(params: dict[str, Any]) -> None:
    params["curate"]["wokers"] = 2
    params["pretrain"]["minigpt-v2"]["steps"] = "many"
    params["multitask"]["minigpt-v2"]["mixture"]["vqav2"] = -1
    params["describe"]["review"] = "no/such/review.csv"
    params["instruct"]["minigpt4"] |= {"micro_batch_size": 64, "global_batch_size": 8}
    found = refused(params)
    assert set(found) == {
        "curate.wokers",
        "pretrain.minigpt-v2.steps",
        "multitask.minigpt-v2.mixture.vqav2",
        "describe.review",
        "instruct.minigpt4.micro_batch_size",
    }
    assert "workers" in found["curate.wokers"].fix
    assert found["pretrain.minigpt-v2.steps"].value == "many"
    assert found["multitask.minigpt-v2.mixture.vqav2"].value == -1
    assert "no/such/review.csv" in found["describe.review"].fix
    assert "8" in found["instruct.minigpt4.micro_batch_size"].rule


def test_several_mistakes_of_one_section_are_all_told(params: dict[str, Any]) -> None:
    params["pretrain"]["minigpt4"] |= {
        "warmup_steps": 10_000,
        "minimum_learning_rate": 5.0,
        "stepz": 1,
        "weight_decay": -1,
    }
    found = refused(params)
    names = {"warmup_steps", "minimum_learning_rate", "stepz", "weight_decay"}
    assert set(found) == {f"pretrain.minigpt4.{name}" for name in names}


def test_what_is_required_and_absent_is_told_with_the_rest(params: dict[str, Any]) -> None:
    del params["pretrain"]["minigpt4"]["steps"]
    params["storage"]["root"] = "https://host/bucket"
    found = refused(params)
    assert set(found) == {"pretrain.minigpt4.steps", "storage.root"}
    assert found["pretrain.minigpt4.steps"].absent


def test_the_environment_says_where(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params))
    settings = load("params.yaml", {"MGPT_STORAGE__ROOT": "s3://elsewhere/x", "MGPT_CLUSTER__CPUS": "3", "OTHER": "1"})
    assert settings.storage.root == "s3://elsewhere/x"
    assert settings.cluster.cpus == 3


def test_the_environment_may_not_say_what(params: dict[str, Any]) -> None:
    environment = {"MGPT_INSTRUCT__STEPS": "3", "MGPT_STORAGE_ROOT": "x", "MGPT_STORAGE__ROOTT": "x"}
    found = refused(params, environment)
    assert set(found) == {"MGPT_INSTRUCT__STEPS", "MGPT_STORAGE_ROOT", "storage.roott"}
    assert "MGPT_STORAGE__ROOT" in found["MGPT_STORAGE_ROOT"].fix


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: 1\na: 2\n", "stands twice"), ("- 1\n", "holds list"), ("a: [1\n", "no valid YAML")],
)
def test_a_file_that_is_no_params_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "params.yaml", {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "params.yaml", {})


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    text = "a: 1e-4\nb: 2.5\nc: 7\nd: -3\ne: 1.e3\nf: '1e-4'\ng: 1e5x\nh: .5\ni: yes\nj: 0.0\n"
    (tmp_path / "p.yaml").write_text(text)
    ours = read_params(tmp_path / "p.yaml")
    dvcs = dict(YAML(typ="safe").load(text))
    for key in "abcdefghj":
        assert ours[key] == dvcs[key], key
        assert type(ours[key]) is type(dvcs[key]), key
