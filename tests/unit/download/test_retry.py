"""Retries of transient errors."""

import pytest
import tenacity

from mgpt.config.sources import DownloadSettings
from mgpt.download.fetch import retry
from mgpt.download.mirrors import NotFoundError, TransientError

SETTINGS = DownloadSettings(attempts=4, backoff_seconds=2)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause between attempts, none of which is waited for."""
    seconds: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", seconds.append)
    return seconds


class Failing:
    """Raises the errors in turn, then returns the number of calls."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def test_backoff_doubles_with_jitter(pauses):
    assert retry(Failing(*[TransientError("busy")] * 3), SETTINGS) == 4
    assert [1 <= pauses[0] <= 3, 2 <= pauses[1] <= 6, 4 <= pauses[2] <= 12] == [True] * 3


def test_last_error_is_raised_after_all_attempts(pauses):
    action = Failing(*[TransientError(f"error {number}") for number in range(1, 6)])
    with pytest.raises(TransientError, match="error 4"):
        retry(action, SETTINGS)
    assert action.calls == 4
    assert len(pauses) == 3


def test_other_errors_are_not_retried(pauses):
    action = Failing(NotFoundError("absent"))
    with pytest.raises(NotFoundError):
        retry(action, SETTINGS)
    assert action.calls == 1
    assert pauses == []


def test_retry_after_is_a_lower_bound(pauses):
    assert retry(Failing(TransientError("busy", 60), TransientError("busy", 0.5)), SETTINGS) == 3
    assert pauses[0] == 60
    assert 2 <= pauses[1] <= 6
