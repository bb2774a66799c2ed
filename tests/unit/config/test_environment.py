"""Environment variables that set keys of the params file."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt.config import load_settings
from mgpt.config.environment import CACHE, JOB_FINGERPRINT, JOB_INPUTS, REPAIR_API_KEY
from tests.fixtures.config import config_issues, write_params


def test_variables_override_the_file(params: dict[str, Any]) -> None:
    environment = {"MGPT_STORAGE__ROOT": "s3://elsewhere/x", "MGPT_CLUSTER__CPUS": "3", "OTHER": "1"}
    settings = load_settings(write_params(params), environment)
    assert settings.storage.root == "s3://elsewhere/x"
    assert settings.cluster.cpus == 3


@pytest.mark.parametrize("root", ["/a/Drive #2/s", "a: b", "[x]", "007", "null", "C:\\store"])
def test_strings_are_taken_as_they_are(params: dict[str, Any], root: str) -> None:
    assert load_settings(write_params(params), {"MGPT_STORAGE__ROOT": root}).storage.root == root


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("WORKERS", "4", 4),
        ("MAXIMUM_WORKERS", "null", None),
        ("CPUS_PER_WORKER", "0.5", 0.5),
        ("DETERMINISTIC", "true", True),
        ("SAMPLE_LOG", "yes", True),
        ("PARALLELISM", "fsdp", "fsdp"),
        ("PROFILE", "[3, 5]", (3, 5)),
    ],
)
def test_values_are_converted_to_the_field_type(params: dict[str, Any], name: str, text: str, value: object) -> None:
    settings = load_settings(write_params(params), {f"MGPT_CLUSTER__TRAINING__{name}": text})
    assert getattr(settings.cluster.training, name.lower()) == value


def test_other_sections_and_misspelt_names_are_refused(params: dict[str, Any]) -> None:
    environment = {"MGPT_INSTRUCT__STEPS": "3", "MGPT_STORAGE_ROOT": "x", "MGPT_STORAGE__ROOTT": "x"}
    found = config_issues(params, environment)
    assert set(found) == {"MGPT_INSTRUCT__STEPS", "MGPT_STORAGE_ROOT", "storage.roott"}
    assert "MGPT_STORAGE__ROOT" in found["MGPT_STORAGE_ROOT"].fix
    assert found["storage.roott"].source == "MGPT_STORAGE__ROOTT"


@pytest.mark.parametrize("name", ["MGPT_STORAGE", "MGPT_CLUSTER__TRAINING"])
def test_sections_have_no_value(params: dict[str, Any], name: str) -> None:
    environment = {name: "x", "MGPT_CLUSTER__TRAINING__WORKERS": "2"}
    assert set(config_issues(params, environment)) == {name}


def test_issue_names_the_variable(params: dict[str, Any]) -> None:
    found = config_issues(params, {"MGPT_CLUSTER__TRAINING__WORKERS": "-1", "MGPT_TRACKING__URI": "mlruns"})
    assert {key: one.source for key, one in found.items()} == {
        "cluster.training.workers": "MGPT_CLUSTER__TRAINING__WORKERS",
        "tracking.uri": "MGPT_TRACKING__URI",
    }


@pytest.mark.parametrize("name", [CACHE, JOB_FINGERPRINT, JOB_INPUTS, REPAIR_API_KEY])
def test_other_variables_of_mgpt_set_nothing(params: dict[str, Any], name: str) -> None:
    write_params(params)
    assert load_settings("params.yaml", {name: "x"}) == load_settings("params.yaml", {})
