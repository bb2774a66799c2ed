"""The command as a process of its own: light commands import nothing heavy, and help is fast."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "mlflow", "transformers", "pandas", "pyarrow", "numpy")
READERS_NEED = ("pyarrow", "numpy")  # `mgpt check` imports the dataset readers for their names


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["mgpt", "--help"], ()),
        (["mgpt", "data", "--help"], ()),
        (["flows", "--help"], ()),
        (["mgpt", "check"], READERS_NEED),
    ],
    ids=lambda value: " ".join(value),
)
def test_light_commands_import_nothing_heavy(arguments: list[str], allowed: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = {arguments!r}\n"
        "try:\n    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MGPT_STORAGE__ROOT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    heavy = [name for name in HEAVY if name not in allowed and f"'{name}'" in done.stdout.split("HEAVY")[1]]
    assert not heavy


def test_help_takes_less_than_a_second_of_cpu() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "mgpt", "--help"], env=environment, check=True, capture_output=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0
