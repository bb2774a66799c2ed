import json

import psutil
import pytest

from mgpt.config.training import WorkerSettings
from mgpt.execution.train import read_curve
from mgpt.training.callbacks.memory import MemoryUsage
from mgpt.training.callbacks.metrics_logger import MetricsLogger, curve_csv
from mgpt.training.callbacks.mfu import ModelFlops
from mgpt.training.callbacks.profiler import Profiler
from mgpt.training.flops import StepFlops
from tests.fixtures.toy_training import make_trainer, steps


def test_flops_and_memory_columns(settings):
    count = StepFlops(token=3e6, supervised=0, encoded=0, projected=0, pair=0)
    curve = MetricsLogger(3, metrics=(ModelFlops(count), MemoryUsage()))
    make_trainer(settings(), [curve]).run(steps())
    assert len(curve.rows) == 4
    for row in curve.rows:
        assert row["teraflops"] == pytest.approx(3e6 * row["tokens_per_second"] / 1e12, rel=1e-6)
        assert "mfu" not in row  # a CPU has no known peak
        assert row["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.5)


def test_csv_with_changing_columns():
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "mfu": 0.5}]
    assert read_curve(curve_csv(rows).encode()) == rows


@pytest.mark.parametrize(("first", "count", "name"), [(3, 2, "steps-3-5"), (0, 1, "steps-0-1"), (11, 5, "steps-11-12")])
def test_profiler_traces_its_steps(settings, first, count, name):
    written = {}
    make_trainer(settings(), [Profiler(first, count, written.__setitem__)]).run(steps())
    assert list(written) == [f"{name}-worker-0.json"]
    events = json.loads(written[f"{name}-worker-0.json"])["traceEvents"]
    updates = [event for event in events if event.get("name", "").startswith("Optimizer.step")]
    assert len(updates) == min(count, 12 - first)


def test_profiler_out_of_range_writes_nothing(settings):
    written = {}
    trainer = make_trainer(settings(), [Profiler(3, 2, written.__setitem__), Profiler(40, 2, written.__setitem__)])
    trainer.step = 6
    trainer.run(steps(start=6))
    assert not written


@pytest.mark.parametrize("wrong", [(-1, 2), (0, 0), (3,)])
def test_bad_profile_setting_is_error(wrong):
    with pytest.raises(ValueError, match="profile"):
        WorkerSettings(profile=wrong)
