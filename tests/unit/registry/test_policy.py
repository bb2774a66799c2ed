"""The promotion policy on scores alone."""

import json

import pytest

from mgpt.config.registry import GateSettings
from mgpt.registry.policy import Score, check_scores, parse_scores, read_scores
from tests.fixtures.registry import score, write_scores


def scores(**values):
    return parse_scores(
        {name: score(**value) if isinstance(value, dict) else score(value) for name, value in values.items()}
    )


def failed(checks):
    return {check.name for check in checks if not check.passed}


def test_limits_pass_at_bound_and_fail_beyond():
    policy = GateSettings(floors={"vqa": 0.8}, ceilings={"hallucinated": 0.1})
    edge = scores(vqa=0.8, hallucinated={"value": 0.1, "higher_is_better": False})
    beyond = scores(vqa=0.7999, hallucinated={"value": 0.1001, "higher_is_better": False})
    assert failed(check_scores(edge, None, policy)) == set()
    assert failed(check_scores(beyond, None, policy)) == {"floor vqa", "ceiling hallucinated"}


def test_unmeasured_metric_fails_its_limit():
    checks = check_scores(scores(vqa=0.9), None, GateSettings(floors={"refer": 0.5}))
    assert failed(checks) == {"floor refer"}


def test_limit_on_wrong_side_fails():
    checks = check_scores(
        scores(hallucinated={"value": 0.05, "higher_is_better": False}),
        None,
        GateSettings(floors={"hallucinated": 0.01}),
    )
    assert failed(checks) == {"floor hallucinated"}
    assert "ceilings" in checks[0].reason


def test_worse_means_outside_champion_interval():
    champion = scores(vqa=0.8, degeneration={"value": 0.2, "higher_is_better": False})
    inside = scores(vqa=0.76, degeneration={"value": 0.24, "higher_is_better": False})
    outside = scores(vqa=0.74, degeneration={"value": 0.26, "higher_is_better": False})
    better = scores(vqa=0.95, degeneration={"value": 0.01, "higher_is_better": False})
    assert failed(check_scores(inside, champion, GateSettings())) == set()
    assert failed(check_scores(outside, champion, GateSettings())) == {"champion vqa", "champion degeneration"}
    assert failed(check_scores(better, champion, GateSettings())) == set()


def test_only_named_metrics_are_compared():
    champion, candidate = scores(vqa=0.8, refer=0.8), scores(vqa=0.8)
    assert failed(check_scores(candidate, champion, GateSettings(compare=("vqa",)))) == set()
    assert failed(check_scores(candidate, champion, GateSettings())) == {"champion refer"}
    assert failed(check_scores(scores(vqa=0.8, new=0.1), champion, GateSettings(compare=("vqa", "new")))) == set()


def test_missing_answers_fail_with_counts():
    checks = check_scores(scores(vqa={"value": 0.9, "missing": 3}), None, GateSettings())
    assert failed(checks) == {"no missing answers"}
    assert "vqa: 3 of 400" in next(check.reason for check in checks if not check.passed)


def test_read_scores_of_one_checkpoint(tmp_path):
    path = write_scores(tmp_path / "metrics.json", vqa=score(0.5))
    assert read_scores(path, "instruct") == {"vqa": Score(0.5, 0.45, 0.55, 400, 0, True)}


OTHER_FILES = [
    "",
    "[]",
    "{}",
    '{"scores": []}',
    '{"scores": {"instruct": {}}}',
    '{"scores": {"instruct": {"vqa": {"value": 1}}}}',
]


@pytest.mark.parametrize("content", OTHER_FILES)
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=str(path)):
        read_scores(path, "instruct")


def test_unknown_checkpoint_and_missing_file_are_refused(tmp_path):
    path = write_scores(tmp_path / "metrics.json", vqa=score(0.5))
    with pytest.raises(ValueError, match="'pretrain', only of untrained, instruct"):
        read_scores(path, "pretrain")
    with pytest.raises(ValueError, match="run the evaluate stage"):
        read_scores(tmp_path / "none.json", "instruct")


def test_policy_reads_evaluation_report(tmp_path):
    from mgpt.evaluation.evaluator import Evaluation
    from mgpt.evaluation.report import write_report
    from mgpt.evaluation.scoring import Score as Measured

    measured = Measured(0.6, 0.5, 0.7, 0.1, 40, 1, 2, True, True)
    write_report(Evaluation("minigpt-v2", {"instruct": {"rec_accuracy": measured}}, []), tmp_path)
    assert read_scores(tmp_path / "metrics.json", "instruct") == {"rec_accuracy": Score(0.6, 0.5, 0.7, 40, 1, True)}
    assert json.loads((tmp_path / "metrics.json").read_text())
