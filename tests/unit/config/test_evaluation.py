"""Settings of describe and evaluate."""

import pytest
from pydantic import ValidationError

from mgpt.config.evaluation import DescribeSettings, GenerationTaskSettings, ModelEvaluationSettings, RepairSettings

EVALUATION = {"format": "minigpt-v2", "checkpoints": ["untrained", "instruct"], "tasks": {"vqa": {}}}


def test_defaults_match_the_paper():
    settings = DescribeSettings()
    assert (settings.images, settings.continue_below) == (5000, 80)
    assert settings.prompt == "Describe this image in detail. Give as many details as possible. Say everything you see."
    assert ModelEvaluationSettings(**EVALUATION).tasks["vqa"].examples >= 400


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ModelEvaluationSettings, {**EVALUATION, "tasks": {}}, "at least 1 item"),
        (ModelEvaluationSettings, {**EVALUATION, "checkpoints": ["last"]}, "untrained"),
        (ModelEvaluationSettings, {**EVALUATION, "size_limits": {"large": 1.0, "small": 0.1}}, "ascending"),
        (ModelEvaluationSettings, {**EVALUATION, "size_limits": {"small": 0.5}}, r"end with 1\.0"),
        (GenerationTaskSettings, {"examples": 10, "early_examples": 11}, "at most examples"),
        (RepairSettings, {"url": "localhost:1"}, "HTTP endpoint"),
        (RepairSettings, {"url": "http://localhost:1/v1"}, "name of a model"),
        (DescribeSettings, {"accept_unreviewed": False}, "rejected"),
        (DescribeSettings, {"review": "nowhere.csv"}, "must exist"),
        (DescribeSettings, {"filters": {"minimum_named": 1.0}}, "needs a vocabulary"),
        (DescribeSettings, {"datasets": []}, "at least 1 item"),
        (DescribeSettings, {"image": 3}, "Extra inputs"),
    ],
)
def test_invalid_values_are_refused(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)
