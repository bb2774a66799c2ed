"""Rules over several sections: names that are given and used, and places that can be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mgpt.config import load
from tests.fixtures.config import refused


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
    params["evaluate"]["minigpt-v2"]["tasks"]["rec"]["items"] = "all"
    assert set(refused(params)) == {
        "sources.world.datasets.laion.cap",
        "pretrain.minigpt4.steps",
        "models.minigpt-v2.merge",
        "evaluate.minigpt-v2.tasks.rec.items",
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


def test_a_quantised_model_is_not_sharded(params: dict[str, Any]) -> None:
    params["models"]["minigpt-v2"]["quantization"] = "4bit"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    load("params.yaml", {})
    params["cluster"]["training"] = {"parallelism": "fsdp"}
    found = refused(params)
    assert set(found) == {"cluster.training.parallelism"}
    assert "models.minigpt-v2.quantization to null" in found["cluster.training.parallelism"].fix
