"""Predicted memory against real training steps of the shapes world, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from mgpt.plan.memory import Kinds, Rows, training_memory
from mgpt.plan.stages import sizes_for
from mgpt.settings import load

ROOT = Path(__file__).parents[2]
# (system, rows, length, supervised tokens a row, precision, recomputed): the stages of params.yaml, and what else may decide the peak.
CASES = [
    ("minigpt4", 16, 48, 24, "fp32", False),  # pretrain
    ("minigpt4", 8, 120, 64, "fp32", False),  # instruct, its long descriptions
    ("minigpt-v2", 16, 64, 8, "fp32", False),  # pretrain, multitask and instruct
    ("minigpt-v2", 16, 160, 80, "fp32", False),  # instruct, its long answers
    ("minigpt-v2", 16, 64, 24, "bf16", False),
    ("minigpt4", 16, 64, 24, "bf16", True),
    ("minigpt-v2", 16, 64, 24, "fp32", True),
]


@pytest.fixture(scope="module")
def measured() -> list[int]:
    """Bytes of every case's step, from a process of its own."""
    script = str(Path(__file__).with_name("measured.py"))
    done = subprocess.run([sys.executable, script, json.dumps(CASES)], capture_output=True, text=True, check=True, cwd=ROOT)
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_memory_of_a_step_is_predicted_within_a_tenth(number: int, measured: list[int]) -> None:
    system, rows, length, supervised, precision, recomputed = CASES[number]
    sizes = sizes_for(load(ROOT / "params.yaml", {}), system)
    predicted = training_memory(
        sizes, Rows(rows, length, rows * supervised, rows), Kinds(precision, None, precision), recomputed=recomputed
    )
    assert predicted.total == pytest.approx(measured[number], rel=0.1), asdict(predicted)
