"""Settings of the training stages."""

import pytest
from pydantic import ValidationError

from mgpt.config.training import TrainingSettings, WorkerSettings

VALID = {
    "format": "minigpt-v2",
    "mixture": {"a": 2, "b": 1},
    "steps": 10,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"mixture": {"a": 0}}, "mixture.a"),
        ({"tasks": {"c": "caption"}}, "tasks.c"),
        ({"micro_batch_size": 9}, "micro_batch_size"),
        ({"minimum_learning_rate": 1e-2}, "minimum_learning_rate"),
        ({"warmup_steps": 10}, "warmup_steps"),
        ({"lr_scheduler": "original"}, "steps_per_epoch"),
        ({"steps_per_epoch": 5}, "steps_per_epoch"),
    ],
)
def test_broken_rule_names_its_key(change, key):
    with pytest.raises(ValidationError) as caught:
        TrainingSettings(**{**VALID, **change})
    assert [error["ctx"]["key"] for error in caught.value.errors()] == [key]


def test_valid_settings_pass():
    assert TrainingSettings(**VALID).mixture == {"a": 2, "b": 1}


def test_elastic_range_must_ascend():
    with pytest.raises(ValidationError, match="at least workers"):
        WorkerSettings(workers=3, maximum_workers=2)
