"""Mistakes in the params file and the environment: all at once, each with key, value, rule and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpt.settings import SettingsError, load, section
from mgpt.settings.loader import read_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The default experiment, to be damaged; paths in it are looked for in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return read_params(ROOT / "params.yaml")


def refused(params: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError) as caught:
        load("params.yaml", environment or {})
    for one in caught.value.mistakes:
        assert one.rule, one
        assert one.fix, one
        assert one.key in str(caught.value)
    return {one.key: one for one in caught.value.mistakes}


def test_the_default_experiment_is_right(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params))
    settings = load("params.yaml", {})
    assert section(settings, "instruct", "minigpt-v2").learning_rate == params["instruct"]["minigpt-v2"]["learning_rate"]


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
    params["pretrain"]["minigpt4"] |= {"warmup_steps": 10_000, "minimum_learning_rate": 5.0, "stepz": 1, "weight_decay": -1}
    found = refused(params)
    names = {"warmup_steps", "minimum_learning_rate", "stepz", "weight_decay"}
    assert set(found) == {f"pretrain.minigpt4.{name}" for name in names}


def test_what_is_required_and_absent_is_told_with_the_rest(params: dict[str, Any]) -> None:
    del params["pretrain"]["minigpt4"]["steps"]
    params["storage"]["root"] = "gs://bucket"
    found = refused(params)
    assert set(found) == {"pretrain.minigpt4.steps", "storage.root"}
    assert found["pretrain.minigpt4.steps"].absent


def test_a_system_without_a_model_is_refused(params: dict[str, Any]) -> None:
    params["instruct"]["minigpt-v3"] = params["instruct"]["minigpt-v2"]
    assert set(refused(params)) == {"instruct.minigpt-v3"}


def test_a_far_cluster_needs_a_store_and_a_server_it_can_reach(params: dict[str, Any]) -> None:
    params["cluster"]["address"] = "http://head.example.org:8265"
    assert set(refused(params)) == {"storage.root", "tracking.uri"}
    params["cluster"]["address"] = "http://127.0.0.1:8265"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    load("params.yaml", {})


def test_names_that_no_section_gives_are_told_before_anything_starts(params: dict[str, Any]) -> None:
    params["pretrain"]["minigpt4"]["mixture"]["lajon"] = 1
    params["multitask"]["minigpt-v2"]["mixture"]["described"] = 1  # what describe makes is for instruct
    params["describe"]["datasets"] = ["cc_sbu", "holiday"]
    params["models"]["minigpt-v2"]["vision"] = "backbonez/vision"
    params["evaluate"]["minigpt4"]["checkpoints"].append("multitask")
    params["evaluate"]["minigpt-v2"]["datasets"].append("okvqa")
    params["promote"]["minigpt4"]["compare"] = ["vqa_accuracy"]
    params["sources"]["holiday"] = {"locations": ["no/such/folder"], "datasets": {"trip": {"reader": "jsonl"}}}
    found = refused(params)
    assert {key: one.value for key, one in found.items()} == {
        "pretrain.minigpt4.mixture.lajon": 1,
        "multitask.minigpt-v2.mixture.described": 1,
        "describe.datasets": "holiday",
        "models.minigpt-v2.vision": "backbonez/vision",
        "evaluate.minigpt4.checkpoints": "multitask",
        "evaluate.minigpt-v2.datasets": "okvqa",
        "promote.minigpt4.compare": "vqa_accuracy",
        "sources.holiday.locations": "no/such/folder",
    }
    assert "laion" in found["pretrain.minigpt4.mixture.lajon"].fix
    assert "trip" in found["describe.datasets"].fix


def test_a_name_is_given_even_where_its_section_has_a_mistake(params: dict[str, Any]) -> None:
    params["sources"]["world"]["datasets"]["laion"]["cap"] = "few"
    del params["pretrain"]["minigpt4"]["steps"]
    params["models"]["minigpt-v2"]["merge"] = 0
    params["evaluate"]["minigpt-v2"]["tasks"]["refer"]["items"] = "all"
    assert set(refused(params)) == {
        "sources.world.datasets.laion.cap",
        "pretrain.minigpt4.steps",
        "models.minigpt-v2.merge",
        "evaluate.minigpt-v2.tasks.refer.items",
    }


def test_a_source_needs_one_place_that_is_there_and_a_job_does_not_look(params: dict[str, Any]) -> None:
    gone = {"locations": ["gone"], "datasets": {"trip": {"reader": "jsonl"}}}
    params["sources"]["holiday"] = gone
    assert set(refused(params)) == {"sources.holiday.locations"}
    load("params.yaml", {"MGPT_JOB_IDENTITY": "0123"})
    for locations in (["gone", "https://example.org/photographs/"], ["gone", "here"]):
        Path("here").mkdir(exist_ok=True)
        params["sources"]["holiday"] = {**gone, "locations": locations}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        assert load("params.yaml", {}).sources["holiday"].locations == tuple(locations)


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
