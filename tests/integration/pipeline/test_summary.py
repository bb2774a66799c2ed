"""The final page and results/summary.json follow from the results of the stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt.config import load_settings
from mgpt.evaluation.metrics import METRICS
from mgpt.pipeline.stages import pipeline_stages
from mgpt.pipeline.summary import orchestration_share, report, total_seconds

ROOT = Path(__file__).parents[3]
SCORE = {
    "value": 0.5,
    "low": 0.4,
    "high": 0.6,
    "chance": 0.1,
    "n": 400,
    "missing": 0,
    "unparsed": 1,
    "higher_is_better": True,
}


@pytest.fixture
def project(tmp_path: Path, mlflow_uri: str) -> Path:
    """A finished chain. A rollback made version 2 champion of minigpt4 after the last decision named version 3."""
    from mlflow import MlflowClient

    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    client = MlflowClient(mlflow_uri)
    client.create_registered_model("minigpt4")
    for _ in range(3):
        client.create_model_version("minigpt4", source="file:///nowhere")
    client.set_registered_model_alias("minigpt4", "champion", "2")
    clock = 1000.0
    for one in pipeline_stages(load_settings(ROOT / "params.yaml", {})):
        folder = tmp_path / one.folder
        folder.mkdir(parents=True)
        timing = {"started": clock, "ended": clock + 10, "seconds": 10.0, "cpu_seconds": 15.0}
        timing["work"] = {"a": 6.0, "b": 2.0}
        (folder / "timing.json").write_text(json.dumps(timing))
        clock += 12
        if one.stage == "evaluate":
            names = ["instruct", "pretrain", "untrained"] + ["multitask"] * (one.model_name == "minigpt-v2")
            scores = {name: {"rec_accuracy": {**SCORE, "value": len(name) / 10}} for name in names}
            (folder / "metrics.json").write_text(json.dumps({"scores": scores, "missing": 0}))
            (folder / "images.png").write_bytes(b"")
        if one.stage == "promote":
            (folder / "decision.json").write_text(json.dumps({"champion": 3 if one.model_name == "minigpt4" else None}))
    return tmp_path


def test_summary_holds_scores_times_and_champions(project: Path) -> None:
    page = report(project)
    found = json.loads((project / "results" / "summary.json").read_text())
    assert found["models"]["minigpt-v2"]["rec_accuracy"] == {
        "value": 0.8,
        "low": 0.4,
        "high": 0.6,
        "chance": 0.1,
        "n": 400,
    }
    assert list(found["checkpoints"]["minigpt-v2"]) == sorted(["untrained", "pretrain", "multitask", "instruct"])
    assert found["stages"]["pretrain@minigpt4"] == {"seconds": 10.0, "work_seconds": 8.0, "cpu_seconds": 15.0}
    assert found["champions"] == {"minigpt4": 2, "minigpt-v2": None}
    count = len(pipeline_stages(load_settings(ROOT / "params.yaml", {})))
    assert found["seconds"] == pytest.approx(count * 10 + (count - 1) * 2)
    assert found["orchestration_share"] == pytest.approx(1 - count * 8 / found["seconds"])
    assert "minigpt4: version 2 is champion" in page
    assert "minigpt-v2: no champion" in page
    assert "results/evaluate/minigpt-v2/images.png" in page
    header = next(line for line in page.splitlines() if "multitask" in line)
    assert header.split()[1:5] == ["untrained", "pretrain", "multitask", "instruct"]
    assert found["cpu_seconds"] == 15 * count
    rows = [line.split() for line in page.splitlines()]
    assert ["describe", "10.0", "8.0", "15.0"] in rows
    assert max(map(len, page.splitlines())) <= 100


def test_longest_metric_is_not_wrapped_next_to_four_checkpoints(project: Path) -> None:
    longest = max((metric.name for metrics in METRICS.values() for metric in metrics), key=len)
    path = project / "results/evaluate/minigpt-v2/metrics.json"
    content = json.loads(path.read_text())
    for scores in content["scores"].values():
        scores[longest] = {**SCORE, "n": 123_456}
    path.write_text(json.dumps(content))
    lines = report(project).splitlines()
    row = next(line for line in lines if longest in line)
    assert row.split() == [longest, *4 * ["0.500"], "0.400", "-", "0.600", "0.100", "123456"]
    assert max(map(len, lines)) <= 100


def test_long_pause_between_stages_does_not_count() -> None:
    timings = [
        {"started": 0.0, "ended": 10.0, "seconds": 10.0, "work": {"a": 5.0}},
        {"started": 3600.0, "ended": 3610.0, "seconds": 10.0, "work": {"a": 5.0}},
        {"started": 3615.0, "ended": 3620.0, "seconds": 5.0, "work": {}},
    ]
    assert total_seconds(timings) == 30
    assert orchestration_share(timings) == pytest.approx(1 - 10 / 30)


def test_missing_results_are_named(project: Path) -> None:
    (project / "results" / "describe" / "timing.json").unlink()
    with pytest.raises(ValueError, match="describe; run"):
        report(project)
