"""The GPU benchmark at a tiny size: it runs where there is no GPU, and needs neither Ray nor MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Refuses what a bare GPU machine does not have, then runs the script as a person does.
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


def test_every_way_runs_at_a_tiny_size_and_counts_the_same_work():
    done = run("--tiny", "--steps", "2", "--stages", "minigpt4-instruct", "minigpt-v2-multitask")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tiny"] is True
    assert result["gpu"] is None
    for ways in result["stages"].values():
        assert list(ways) == [
            "port",
            "supervised",
            "packed",
            "lean",
            "cached",
            "checkpointed",
            "fused_head",
            "deterministic",
        ]
        work = {name: row["teraflops"] * row["step_seconds"] for name, row in ways.items()}
        assert (
            work["port"]
            == pytest.approx(work["packed"])
            == pytest.approx(work["lean"])
            == pytest.approx(work["checkpointed"])
        )
        assert 0 < work["cached"] < work["packed"]
        assert ways["port"]["padding"] > 0.05
        assert ways["packed"]["padding"] == 0
        assert all("mfu" not in row for row in ways.values())


def test_full_sizes_without_a_gpu_are_refused():
    done = run()
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr
