import pytest
from pydantic import ValidationError

from mgpt.config.evaluation import AskSettings, DescribeSettings, ModelEvaluationSettings, RepairSettings

SYSTEM = {"format": "minigpt-v2", "checkpoints": ["untrained", "instruct"], "tasks": {"rec": {}}}


def test_defaults_are_the_papers():
    settings = DescribeSettings()
    assert (settings.images, settings.continue_below) == (5000, 80)
    assert settings.prompt == "Describe this image in detail. Give as many details as possible. Say everything you see."
    assert ModelEvaluationSettings(**SYSTEM).tasks["rec"].items >= 400


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ModelEvaluationSettings, {**SYSTEM, "tasks": {"poetry": {}}}, "poetry has none"),
        (ModelEvaluationSettings, {**SYSTEM, "tasks": {}}, "at least 1 item"),
        (ModelEvaluationSettings, {**SYSTEM, "checkpoints": ["last"]}, "untrained"),
        (ModelEvaluationSettings, {**SYSTEM, "size_limits": {"large": 1.0, "small": 0.1}}, "ascending"),
        (ModelEvaluationSettings, {**SYSTEM, "size_limits": {"small": 0.5}}, "end with 1.0"),
        (AskSettings, {"items": 10, "early_items": 11}, "at most items"),
        (RepairSettings, {"url": "localhost:1"}, "the address of an HTTP endpoint"),
        (RepairSettings, {"url": "http://localhost:1/v1"}, "needs the name of a model"),
        (DescribeSettings, {"accept_unreviewed": False}, "without a review nothing could survive"),
        (DescribeSettings, {"review": "nowhere.csv"}, "must exist"),
        (DescribeSettings, {"datasets": []}, "at least 1 item"),
        (DescribeSettings, {"image": 3}, "Extra inputs"),
    ],
)
def test_mistakes_are_named(kind, values, message):
    with pytest.raises(ValidationError, match=message):
        kind(**values)
