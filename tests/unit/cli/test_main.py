"""The `mgpt` command: exit codes, messages and version."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from mgpt.cli import main as cli
from mgpt.cli.main import main
from mgpt.storage import Manifest, Store
from tests.fixtures.config import write_params

ROOT = Path(__file__).parents[3]
PROJECT_COMMANDS = [
    ["check"],
    ["report"],
    ["models"],
    ["audit"],
    ["rollback", "minigpt-v2"],
    ["lineage", "minigpt-v2"],
    ["ray", "status"],
    ["ray", "stop"],
    ["data", "card", "minigpt-v2"],
    ["chat", "--image", "a.png", "--prompt", "b"],
]


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    for command in ("check", "plan", "rollback", "lineage", "ray", "data", "chat"):
        assert command in shown.out + shown.err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"mgpt {version}\n"


@pytest.mark.parametrize("command", PROJECT_COMMANDS, ids=" ".join)
def test_outside_a_project_one_sentence_says_so(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mgpt: no params.yaml here")


def test_usage_error_has_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "toaster"]) == 2
    assert "a100-80" in capsys.readouterr().err


def test_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(**_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(cli, "app", missing)
    assert main(["chat"]) == 2
    assert "mgpt[model]" in capsys.readouterr().err


def test_verify_finds_an_altered_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "store"))
    store.write(store.uri("x"), b"1")
    Manifest([store.entry("x", store.uri("x"))]).save(tmp_path / "manifest.json")
    assert main(["verify", str(tmp_path / "manifest.json")]) == 0
    store.write(store.uri("x"), b"2")
    assert main(["verify", str(tmp_path / "manifest.json")]) == 2
    assert "differ" in capsys.readouterr().err


def test_report_without_results_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    assert main(["report"]) == 2
    assert "dvc repro" in capsys.readouterr().err


def test_check_reports_settings_names_and_services_together(
    params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    params["curate"]["wokers"] = 2
    params["sources"]["world"]["datasets"]["laion"]["reader"] = "lajon"
    params["tracking"]["uri"] = "http://127.0.0.1:9"
    params["cluster"]["address"] = "http://127.0.0.1:9"
    write_params(params)
    assert main(["check"]) == 2
    shown = capsys.readouterr().err
    assert "4 errors" in shown
    for key in ("curate.wokers", "sources.world.datasets.laion.reader", "tracking.uri", "cluster.address"):
        assert f": {key} = " in shown
