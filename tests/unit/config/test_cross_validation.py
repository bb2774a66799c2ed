"""Rules over several sections: names that one defines and another uses, absent parts, and reachable addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpt.config import JOB_FINGERPRINT, load_settings
from tests.fixtures.config import config_issues, write_params


def test_unknown_model_is_refused(params: dict[str, Any]) -> None:
    stages = ("pretrain", "multitask", "instruct", "evaluate", "promote")
    for stage in stages:
        params[stage]["minigpt-v3"] = params[stage]["minigpt-v2"]
    assert set(config_issues(params)) == {f"{stage}.minigpt-v3" for stage in stages}


def test_remote_cluster_needs_reachable_store_and_server(params: dict[str, Any]) -> None:
    params["cluster"]["address"] = "http://head.example.org:8265"
    assert set(config_issues(params)) == {"storage.root", "tracking.uri"}
    params["cluster"]["address"] = "http://127.0.0.1:8265"
    load_settings(write_params(params), {})


def test_undefined_names_are_found(params: dict[str, Any]) -> None:
    params["pretrain"]["minigpt4"]["mixture"]["lajon"] = 1
    params["multitask"]["minigpt-v2"]["mixture"]["described"] = 1  # written by describe, for instruct only
    params["describe"]["datasets"] = ["cc_sbu", "holiday"]
    params["models"]["minigpt-v2"]["vision"] = "backbonez/vision"
    params["evaluate"]["minigpt4"]["checkpoints"].append("multitask")
    params["evaluate"]["minigpt-v2"]["datasets"].append("okvqa")
    params["sources"]["holiday"] = {"locations": ["no/such/folder"], "datasets": {"trip": {"reader": "jsonl"}}}
    found = config_issues(params)
    assert {key: one.value for key, one in found.items()} == {
        "pretrain.minigpt4.mixture.lajon": 1,
        "multitask.minigpt-v2.mixture.described": 1,
        "describe.datasets[1]": "holiday",
        "models.minigpt-v2.vision": "backbonez/vision",
        "evaluate.minigpt4.checkpoints[3]": "multitask",
        "evaluate.minigpt-v2.datasets[5]": "okvqa",
        "sources.holiday.locations": "no/such/folder",
    }
    assert "laion" in found["pretrain.minigpt4.mixture.lajon"].fix
    assert "trip" in found["describe.datasets[1]"].fix


def test_invalid_section_still_defines_its_name(params: dict[str, Any]) -> None:
    params["sources"]["world"]["datasets"]["laion"]["cap"] = "few"
    del params["pretrain"]["minigpt4"]["steps"]
    params["models"]["minigpt-v2"]["merge"] = 0
    params["evaluate"]["minigpt-v2"]["tasks"]["vqa"]["examples"] = "all"
    assert set(config_issues(params)) == {
        "sources.world.datasets.laion.cap",
        "pretrain.minigpt4.steps",
        "models.minigpt-v2.merge",
        "evaluate.minigpt-v2.tasks.vqa.examples",
    }


def test_source_needs_an_existing_location(params: dict[str, Any]) -> None:
    missing = {"locations": ["missing"], "datasets": {"trip": {"reader": "jsonl"}}}
    params["sources"]["holiday"] = missing
    assert set(config_issues(params)) == {"sources.holiday.locations"}
    Path("here").mkdir()
    for locations in (["missing", "https://example.org/photographs/"], ["missing", "here"]):
        params["sources"]["holiday"] = {**missing, "locations": locations}
        assert load_settings(write_params(params), {}).sources["holiday"].locations == tuple(locations)


def test_job_ignores_missing_local_sources(params: dict[str, Any]) -> None:
    params["sources"]["holiday"] = {"locations": ["missing"], "datasets": {"trip": {"reader": "jsonl"}}}
    load_settings(write_params(params), {JOB_FINGERPRINT: "0123"})


def test_quantized_model_is_not_sharded(params: dict[str, Any]) -> None:
    params["models"]["minigpt-v2"]["quantization"] = "4bit"
    load_settings(write_params(params), {})
    params["cluster"]["training"] = {"parallelism": "fsdp"}
    found = config_issues(params)
    assert set(found) == {"cluster.training.parallelism"}
    assert "models.minigpt-v2.quantization to null" in found["cluster.training.parallelism"].fix


@pytest.mark.parametrize(
    "kept",
    [
        ("pretrain",),
        ("pretrain", "multitask"),
        ("pretrain", "instruct"),
        ("pretrain", "evaluate"),
        ("pretrain", "multitask", "instruct", "evaluate", "promote"),
        (),
    ],
    ids="+".join,
)
def test_any_part_is_a_pipeline(params: dict[str, Any], kept: tuple[str, ...]) -> None:
    """The stages of MiniGPT-v2 alone, all and in parts; what is left out is absent."""
    stages = ("pretrain", "describe", "multitask", "instruct", "evaluate", "promote")
    content = {key: value for key, value in params.items() if key not in stages}
    content |= {stage: {"minigpt-v2": params[stage]["minigpt-v2"]} for stage in kept}
    content["models"].pop("minigpt4")
    if "evaluate" in content:
        content["evaluate"]["minigpt-v2"]["checkpoints"] = ["untrained", *(one for one in stages[:4] if one in kept)]
    settings = load_settings(write_params(content), {})
    assert settings.describe is None
    assert set(settings.pretrain) == ({"minigpt-v2"} if kept else set())


def test_stage_without_its_predecessor_is_refused(params: dict[str, Any]) -> None:
    del params["pretrain"]
    del params["describe"]
    del params["evaluate"]["minigpt-v2"]
    params["evaluate"]["minigpt4"]["checkpoints"] = ["untrained", "instruct"]
    assert set(config_issues(params)) == {
        "multitask.minigpt-v2",
        "instruct.minigpt4",
        "instruct.minigpt4.mixture.described",
        "promote.minigpt-v2",
    }


def test_describe_needs_pretrained_weights(params: dict[str, Any]) -> None:
    for stage in ("pretrain", "instruct", "evaluate", "promote"):
        del params[stage]["minigpt4"]
    assert set(config_issues(params)) == {"describe"}


def test_sources_are_required(params: dict[str, Any]) -> None:
    content = {"curate": params["curate"]}
    found = config_issues(content)
    assert set(found) == {"sources"}
    assert found["sources"].absent
