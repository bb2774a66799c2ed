import json

import psutil
import pytest

from mgpt.config.training import WorkerSettings
from mgpt.execution.curve import read_curve
from mgpt.training.callbacks.metrics_logger import Curve, curve_csv
from mgpt.training.callbacks.monitors import Compute, Memory, Profile
from mgpt.training.flops import StepFlops
from tests.fixtures.toy_training import make_loop, steps


def test_curve_shows_flops_a_second_and_memory(settings):
    count = StepFlops(token=3e6, supervised=0, encoded=0, projected=0, pair=0)
    curve = Curve(3, gauges=(Compute(count), Memory()))
    make_loop(settings(), [curve]).run(steps())
    assert len(curve.rows) == 4
    for row in curve.rows:
        assert row["teraflops"] == pytest.approx(3e6 * row["tokens_per_second"] / 1e12, rel=1e-6)
        assert "mfu" not in row  # of a CPU nobody says what it could do
        assert row["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.5)


def test_curve_whose_columns_changed_is_written_and_read():
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "mfu": 0.5}]
    assert read_curve(curve_csv(rows).encode()) == rows


@pytest.mark.parametrize(("first", "count", "name"), [(3, 2, "steps-3-5"), (0, 1, "steps-0-1"), (11, 5, "steps-11-12")])
def test_profile_writes_the_trace_of_its_steps(settings, first, count, name):
    written = {}
    make_loop(settings(), [Profile(first, count, written.__setitem__)]).run(steps())
    assert list(written) == [f"{name}-worker-0.json"]
    events = json.loads(written[f"{name}-worker-0.json"])["traceEvents"]
    updates = [event for event in events if event.get("name", "").startswith("Optimizer.step")]
    assert len(updates) == min(count, 12 - first)


def test_profile_that_lies_before_a_resume_or_behind_the_end_writes_nothing(settings):
    written = {}
    loop = make_loop(settings(), [Profile(3, 2, written.__setitem__), Profile(40, 2, written.__setitem__)])
    loop.step = 6
    loop.run(steps(start=6))
    assert not written


@pytest.mark.parametrize("wrong", [(-1, 2), (0, 0), (3,)])
def test_profile_setting_needs_a_step_and_a_count(wrong):
    with pytest.raises(ValueError, match="profile"):
        WorkerSettings(profile=wrong)
