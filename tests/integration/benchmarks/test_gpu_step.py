"""The GPU benchmark at a tiny size, which runs without a GPU, Ray and MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Blocks the packages that a bare GPU machine lacks, then runs the script.
BARE = """
import runpy, sys
sys.modules.update({name: None for name in ("ray", "mlflow")})
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments):
    command = [sys.executable, "-W", "ignore", "-c", BARE, "benchmarks/gpu_step.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


def test_variants_count_the_same_work():
    done = run("--tiny", "--steps", "2", "--stages", "minigpt4-instruct", "minigpt-v2-multitask")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tiny"] is True
    assert result["gpu"] is None
    for variants in result["stages"].values():
        assert list(variants) == [
            "port",
            "supervised",
            "packed",
            "fused",
            "cached",
            "checkpointed",
            "fused_head",
            "deterministic",
        ]
        work = {name: row["teraflops"] * row["step_seconds"] for name, row in variants.items()}
        assert (
            work["port"]
            == pytest.approx(work["packed"])
            == pytest.approx(work["fused"])
            == pytest.approx(work["checkpointed"])
        )
        assert 0 < work["cached"] < work["packed"]
        assert variants["port"]["padding"] > 0.05
        assert variants["packed"]["padding"] == 0
        assert all("mfu" not in row for row in variants.values())


def test_full_size_without_gpu_is_error():
    done = run()
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr
