"""The command: light where it can be, and a user's mistake ends with its message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mgpt.cli.main import main
from mgpt.storage import Manifest, Store

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "mlflow", "transformers", "pyarrow", "pandas", "numpy")


@pytest.mark.parametrize("arguments", [["-m", "mgpt", "--help"], ["-m", "mgpt", "check"], ["-m", "flows", "--help"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = {arguments[1:]!r}\n"
        "try:\n    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MGPT_STORAGE__ROOT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in done.stdout, done.stdout


def test_check_tells_every_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("curate: {workers: 2", "curate: {rows_per_shardd: 2, minimum_side: 0, workers: 2")
    )
    Path("params.yaml").write_text(text)
    assert main(["check"]) == 2
    told = capsys.readouterr().err
    assert "curate.minimum_side" in told
    assert "curate.rows_per_shardd" in told


def test_verify_finds_an_altered_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "store"))
    store.write(store.uri("x"), b"1")
    Manifest([store.entry("x", store.uri("x"))]).save(tmp_path / "manifest.json")
    assert main(["verify", str(tmp_path / "manifest.json")]) == 0
    store.write(store.uri("x"), b"2")
    assert main(["verify", str(tmp_path / "manifest.json")]) == 2
    assert "differ" in capsys.readouterr().err


def test_without_results_the_report_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    assert main(["report"]) == 2
    assert "dvc repro" in capsys.readouterr().err


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "chat" in capsys.readouterr().out
