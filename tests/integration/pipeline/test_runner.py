"""What `mgpt.pipeline.runner.run` does around a stage's work, with a real store and a real MLflow database."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpt.config.restricted_view import UndeclaredRead
from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import Store
from mgpt.storage.artifacts import ArtifactStore, content_digest

ROOT = Path(__file__).parents[3]
PIPELINE = """
stages:
  curate:
    cmd: python -m flows curate
    deps: [code.py]
    params: [curate]
    outs: [results/curate/weights, results/curate/run.json, results/curate/timing.json, results/curate/summary.txt]
  instruct:
    foreach: [minigpt-v2]
    do:
      cmd: python -m flows instruct ${item}
      deps: [code.py, results/curate/weights]
      params: ["instruct.${item}"]
      outs: ["results/instruct/${item}/weights"]
"""


@pytest.fixture
def project(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages, which is also the current folder."""
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "code.py").write_text("1")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Body:
    """A stage's work that counts how often it was done."""

    def __init__(self, work: Callable[[StageContext], None] = lambda context: None) -> None:
        self.times, self.work = 0, work
        self.context: StageContext | None = None

    def __call__(self, context: StageContext) -> dict[str, object]:
        self.times += 1
        self.context = context
        (context.out / "weights").mkdir()
        (context.out / "weights" / "a").write_text(
            str(context.settings.curate if context.stage == "curate" else context.section.steps)
        )
        with context.work("thinking"):
            self.work(context)
        return {"answer": 42, "loss": 0.123456}


def only_run(project: Path) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (found,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return found


def change(project: Path, section: str, key: str, value: Any) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content[section][key] = value
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def test_a_stage_leaves_results_record_times_and_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    run("curate", None, body)
    results = project / "results" / "curate"
    record = json.loads((results / "run.json").read_text())
    assert record["name"] == "curate"
    assert record["params"]["curate"]["rows_per_shard"] == 1000
    timing = json.loads((results / "timing.json").read_text())
    assert 0 <= timing["work"]["thinking"] < timing["seconds"]
    assert (results / "summary.txt").read_text() in capsys.readouterr().out
    assert "answer" in (results / "summary.txt").read_text()
    found = only_run(project)
    assert found.data.tags["mgpt.fingerprint"] == record["fingerprint"]
    assert found.data.params["curate.rows_per_shard"] == "1000"
    assert found.info.status == "FINISHED"
    assert not list((project / "results" / ".staging").iterdir())


def test_the_same_work_is_done_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    run("curate", None, body)
    first = content_digest(project / "results" / "curate")
    shutil.rmtree(project / "results")
    run("curate", None, body)
    assert body.times == 1
    assert content_digest(project / "results" / "curate") == first
    change(project, "curate", "rows_per_shard", 7)
    run("curate", None, body)
    assert body.times == 2
    change(project, "curate", "rows_per_shard", 1000)
    run("curate", None, body)
    assert body.times == 2
    assert content_digest(project / "results" / "curate") == first
    assert "is finished; its outputs are in results/curate" in capsys.readouterr().out


def test_a_failure_leaves_the_old_results_and_a_failed_run(project: Path) -> None:
    (project / "results" / "curate").mkdir(parents=True)
    (project / "results" / "curate" / "old").write_text("1")

    def fail(context: StageContext) -> None:
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        run("curate", None, Body(fail))
    assert [path.name for path in (project / "results" / "curate").iterdir()] == ["old"]
    assert only_run(project).info.status == "FAILED"
    run("curate", None, Body())
    assert only_run(project).info.status == "FINISHED"


def test_an_undeclared_read_stops_the_stage(project: Path) -> None:
    with pytest.raises(UndeclaredRead, match=r"stage curate reads describe"):
        run("curate", None, Body(lambda context: print(context.settings.describe.images)))
    assert not (project / "results" / "curate").exists()


def test_a_declared_output_that_was_not_written_stops_the_stage(project: Path) -> None:
    with pytest.raises(AssertionError, match="weights"):
        run("curate", None, Body(lambda context: shutil.rmtree(context.out / "weights")))
    assert not (project / "results" / "curate").exists()


def test_lineage_grows_from_stage_to_stage(project: Path) -> None:
    run("curate", None, Body())
    body = Body()
    run("instruct", "minigpt-v2", body)
    first = json.loads((project / "results/curate/run.json").read_text())
    second = json.loads((project / "results/instruct/minigpt-v2/run.json").read_text())
    assert second["name"] == "instruct@minigpt-v2"
    assert second["lineage"] == {"curate": first["fingerprint"]}
    assert list(second["inputs"]) == ["results/curate/weights"]
    assert body.context is not None
    assert body.context.run_uri.endswith(second["fingerprint"])


def test_a_missing_input_is_told_before_anything_starts(project: Path) -> None:
    body = Body()
    with pytest.raises(
        ValueError, match="results/curate/weights, which is not there; run `dvc repro instruct@minigpt-v2`"
    ):
        run("instruct", "minigpt-v2", body)
    assert body.times == 0


def test_dry_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    run("curate", None, body, dry=True)
    assert "would run here" in capsys.readouterr().out
    run("curate", None, body)
    run("curate", None, body, dry=True)
    assert capsys.readouterr().out.splitlines()[-1].endswith("finished: the outputs are in the store")
    assert body.times == 1


def test_altered_outputs_are_not_brought_back_but_made_again(project: Path) -> None:
    run("curate", None, Body())
    store = Store(str(project / "store"))
    outputs = ArtifactStore(store).outputs(json.loads((project / "results/curate/run.json").read_text())["fingerprint"])
    assert outputs is not None
    store.write(store.uri("content", outputs["weights"], "a"), b"else")
    body = Body()
    with pytest.raises(ValueError, match=r"altered.*run the stage again"):
        run("curate", None, body)
    assert body.times == 0
    run("curate", None, body)
    assert body.times == 1


def _twice(folder: str, started: Any, finish: Any, queue: Any) -> None:
    import os

    os.chdir(folder)

    def wait(context: StageContext) -> None:
        started.set()
        finish.wait(60)

    body = Body(wait)
    run("curate", None, body)
    queue.put(body.times)


def test_a_second_process_waits_and_does_nothing(project: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    started, finish, queue = spawn.Event(), spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=_twice, args=(str(project), started, finish, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert started.wait(120)
    finish.set()
    for process in processes:
        process.join(120)
    assert sorted(queue.get(timeout=10) for _ in processes) == [0, 1]
