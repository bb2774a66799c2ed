"""Planned memory compared with real training steps of the shapes world, run in a subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    """All cases of the benchmark, planned and measured."""
    done = subprocess.run([sys.executable, "benchmarks/plan.py"], capture_output=True, text=True, check=True, cwd=ROOT)
    return list(json.loads(done.stdout.splitlines()[-1])["cases"])


def test_memory_is_planned_within_a_tenth(cases: list[dict[str, Any]]) -> None:
    assert {(case["model_name"], case["attention"], case["cached"]) for case in cases if case["fused"]} >= {
        (model_name, attention, cached)
        for model_name in ("minigpt4", "minigpt-v2")
        for attention in ("sdpa", "varlen")
        for cached in (False, True)
    }
    assert {(case["attention"], case["backbones"], case["precision"]) for case in cases} >= {
        (attention, *held)
        for attention in ("sdpa", "varlen")
        for held in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"))
    }
    assert {(case["attention"], case["recompute"]) for case in cases} >= {("sdpa", True), ("varlen", True)}
    assert any(case["dropout"] for case in cases)
    assert any(case["packed"] and case["attention"] == "sdpa" for case in cases)
    for case in cases:
        assert case["planned"] == pytest.approx(case["measured"], rel=0.1), case


def test_mfu_stays_below_one(cases: list[dict[str, Any]]) -> None:
    """An MFU above one would mean FLOPs that are counted but not computed, or a wrong peak."""
    assert all(0.05 < case["mfu"] < 1 for case in cases if case["precision"] == "fp32")
