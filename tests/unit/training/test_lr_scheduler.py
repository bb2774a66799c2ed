from itertools import pairwise

import pytest

from mgpt.training.lr_scheduler import OriginalSchedule, WarmupCosine, make_lr_scheduler

# Values of the original code's configurations, computed from its formula (common/optims.py:56-112).
ORIGINAL = [
    (
        OriginalSchedule(1e-4, 8e-5, 1e-6, 5000, 20000, 5000),
        {4999: 9.998e-5, 5000: 9.707e-5, 10000: 9.000e-5, 20000: 8.000e-5},
    ),
    (
        OriginalSchedule(3e-5, 1e-5, 1e-6, 200, 1000, 200),
        {199: 2.986e-5, 200: 2.809e-5, 400: 2.309e-5, 500: 2.000e-5, 1000: 1.000e-5},
    ),
    (
        OriginalSchedule(1e-5, 1e-6, 1e-6, 1000, 50000, 1000),
        {999: 9.991e-6, 1000: 9.991e-6, 25000: 5.500e-6, 35000: 2.855e-6, 50000: 1.000e-6},
    ),
]


@pytest.mark.parametrize(("schedule", "expected"), ORIGINAL)
def test_original_matches_published_values(schedule, expected):
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, rel=2e-4)


def test_original_restarts_warmup_each_epoch():
    schedule = OriginalSchedule(1.0, 0.0, 0.0, 10, 100, 4)
    assert [schedule(step) for step in range(9)] == pytest.approx([0, 0.1, 0.2, 0.3, 0, 0.1, 0.2, 0.3, 0])


def test_cosine_is_continuous_from_peak_to_minimum():
    schedule = WarmupCosine(1.0, 0.1, 0.0, 10, 110)
    values = [schedule(step) for step in range(111)]
    assert values[10] == max(values) == 1.0
    assert values[110] == pytest.approx(0.1)
    assert values[60] == pytest.approx(0.55)
    assert max(abs(a - b) for a, b in pairwise(values)) <= 0.1 + 1e-9
    assert all(a > b for a, b in pairwise(values[10:]))


def test_schedule_follows_settings(settings):
    assert make_lr_scheduler(settings()) == WarmupCosine(1e-2, 0.0, 0.0, 2, 12)
    assert make_lr_scheduler(settings(lr_scheduler="original", steps_per_epoch=6)) == OriginalSchedule(
        1e-2, 0.0, 0.0, 2, 12, 6
    )
