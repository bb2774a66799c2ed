"""What counts as training time."""

from flows.training import step_seconds


def test_only_this_runs_steps_count_and_not_their_waiting() -> None:
    curve = [
        {"step": 10.0, "step_seconds": 1.0, "data_wait": 0.0},
        {"step": 20.0, "step_seconds": 2.0, "data_wait": 0.5},
        {"step": 25.0, "step_seconds": 1.0, "data_wait": 0.0},
    ]
    assert step_seconds(curve, 0) == 10 + 10 + 5
    assert step_seconds(curve, 10) == 10 + 5
    assert step_seconds(curve, 25) == 0
