"""Errors in the params file and the environment: all at once, each with line, key, value, rule and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpt.config import ConfigError, load_settings, section
from tests.fixtures.config import config_issues, write_params


def test_default_experiment_is_valid(params: dict[str, Any]) -> None:
    settings = load_settings(write_params(params), {})
    assert section(settings, "instruct", "minigpt-v2").learning_rate == 1.5e-3


def test_errors_of_several_sections_are_reported_together(params: dict[str, Any]) -> None:
    params["curate"]["wokers"] = 2
    params["pretrain"]["minigpt-v2"]["steps"] = "many"
    params["multitask"]["minigpt-v2"]["mixture"]["vqav2"] = -1
    params["describe"]["review"] = "no/such/review.csv"
    params["instruct"]["minigpt4"] |= {"micro_batch_size": 64, "global_batch_size": 8}
    found = config_issues(params)
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


def test_errors_of_one_section_are_reported_together(params: dict[str, Any]) -> None:
    params["pretrain"]["minigpt4"] |= {
        "warmup_steps": 10_000,
        "minimum_learning_rate": 5.0,
        "stepz": 1,
        "weight_decay": -1,
    }
    names = {"warmup_steps", "minimum_learning_rate", "stepz", "weight_decay"}
    assert set(config_issues(params)) == {f"pretrain.minigpt4.{name}" for name in names}


def test_missing_key_is_reported_with_the_rest(params: dict[str, Any]) -> None:
    del params["pretrain"]["minigpt4"]["steps"]
    params["storage"]["root"] = "ftp://host"
    found = config_issues(params)
    assert set(found) == {"pretrain.minigpt4.steps", "storage.root"}
    assert found["pretrain.minigpt4.steps"].absent


def test_issues_have_lines_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "sources:\n  own:\n    locations:\n      - https://example.org/a\n      - gopher://b\n"
        "models: {}\n"
        "pretrain:\n  minigpt4:\n    format: minigpt4\n    mixture:\n      x: -1\n    learning_rate: 1e-4\n"
        "    global_batch_size: 2\n    micro_batch_size: 1\n"
        "curate:\n  wokers: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    lines = {issue.key: issue.line for issue in caught.value.issues}
    assert lines["sources.own.locations"] == 3
    assert lines["pretrain.minigpt4"] == lines["pretrain.minigpt4.steps"] == 8
    assert lines["pretrain.minigpt4.mixture.x"] == 11
    assert lines["curate.wokers"] == 16
    assert list(lines.values()) == sorted(lines.values())
    assert f"{path}:16: curate.wokers = 1" in str(caught.value)


def test_long_values_are_shortened(params: dict[str, Any]) -> None:
    params["curate"]["wokers"] = "x" * 1000
    assert len(str(config_issues(params)["curate.wokers"])) < 300


def test_keys_that_are_numbers_are_refused(params: dict[str, Any]) -> None:
    assert set(config_issues({**params, 1: 2})) == {"1"}
