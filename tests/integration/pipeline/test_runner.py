"""`mgpt.pipeline.runner.run` around a stage's work, with a real store and a real MLflow database."""

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
from mgpt.storage.artifacts import ArtifactStore
from mgpt.storage.hashing import content_digest
from tests.fixtures.pipeline import finished_project

RECORDS = ("run.json", "timing.json", "summary.txt")


@pytest.fixture
def project(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with results of every stage and an empty store, which is also the current folder."""
    finished_project(tmp_path)
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
        for name in context.declared.written:
            if name == "weights":
                (context.out / name).mkdir()
                (context.out / name / "a").write_text(str(context.section))
            elif name not in RECORDS:
                (context.out / name).write_text(str(context.section))
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


def test_stage_leaves_results_records_and_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    run("curate", None, body)
    results = project / "results" / "curate"
    record = json.loads((results / "run.json").read_text())
    assert record["name"] == "curate"
    assert record["params"]["curate"]["rows_per_shard"] == 1000
    timing = json.loads((results / "timing.json").read_text())
    assert 0 <= timing["work"]["thinking"] < timing["seconds"]
    assert timing["cpu_seconds"] > 0
    assert (results / "summary.txt").read_text() in capsys.readouterr().out
    assert "answer" in (results / "summary.txt").read_text()
    found = only_run(project)
    assert found.data.tags["mgpt.fingerprint"] == record["fingerprint"]
    assert found.data.params["curate.rows_per_shard"] == "1000"
    assert found.info.status == "FINISHED"
    assert not list((project / "results" / ".staging").iterdir())


def test_same_work_is_done_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    run("curate", None, body)
    first = content_digest(project / "results" / "curate")
    shutil.rmtree(project / "results" / "curate")
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


def test_failure_keeps_old_results(project: Path) -> None:
    before = content_digest(project / "results" / "curate")

    def fail(context: StageContext) -> None:
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        run("curate", None, Body(fail))
    assert content_digest(project / "results" / "curate") == before
    assert only_run(project).info.status == "FAILED"
    run("curate", None, Body())
    assert only_run(project).info.status == "FINISHED"


def test_undeclared_read_stops_the_stage(project: Path) -> None:
    before = content_digest(project / "results" / "curate")
    with pytest.raises(UndeclaredRead, match=r"stage curate reads describe"):
        run("curate", None, Body(lambda context: print(context.settings.describe.images)))
    assert content_digest(project / "results" / "curate") == before


def test_missing_output_stops_the_stage(project: Path) -> None:
    before = content_digest(project / "results" / "curate")
    with pytest.raises(AssertionError, match=r"quarantine\.json"):
        run("curate", None, Body(lambda context: (context.out / "quarantine.json").unlink()))
    assert content_digest(project / "results" / "curate") == before


def test_lineage_grows_from_stage_to_stage(project: Path) -> None:
    run("multitask", "minigpt-v2", Body())
    body = Body()
    run("instruct", "minigpt-v2", body)
    first = json.loads((project / "results/multitask/minigpt-v2/run.json").read_text())
    second = json.loads((project / "results/instruct/minigpt-v2/run.json").read_text())
    assert second["name"] == "instruct@minigpt-v2"
    assert second["lineage"]["multitask@minigpt-v2"] == first["fingerprint"]
    assert set(second["lineage"]) == {"download", "curate", "pretrain@minigpt-v2", "multitask@minigpt-v2"}
    assert "results/multitask/minigpt-v2/weights" in second["inputs"]
    assert body.context is not None
    assert body.context.run_uri.endswith(second["fingerprint"])
    assert body.context.weights() == {"multitask": project / "results/multitask/minigpt-v2/weights"}


def test_missing_input_stops_before_the_work(project: Path) -> None:
    shutil.rmtree(project / "results/multitask/minigpt-v2/weights")
    body = Body()
    with pytest.raises(ValueError, match=r"multitask/minigpt-v2/weights.*dvc repro instruct@minigpt-v2"):
        run("instruct", "minigpt-v2", body)
    assert body.times == 0


def test_store_of_an_earlier_version_stops_before_the_work(project: Path) -> None:
    (project / "store" / "models").mkdir(parents=True)
    body = Body()
    with pytest.raises(ValueError, match=r"storage\.root.*earlier version"):
        run("curate", None, body)
    assert body.times == 0


def test_dvc_yaml_of_other_params_stops_before_the_work(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {}")
    body = Body()
    with pytest.raises(ValueError, match=r"dvc\.yaml.*python -m mgpt\.pipeline\.dvc_yaml"):
        run("curate", None, body)
    assert body.times == 0


def test_body_sees_the_data_that_its_stage_uses(project: Path) -> None:
    body = Body()
    run("pretrain", "minigpt4", body)
    assert body.context is not None
    assert {entry.meta["dataset"] for entry in body.context.manifest("curate").entries} == {"laion", "cc_sbu"}
    assert {entry.meta["split"] for entry in body.context.manifest("curate", "describe").entries} == {"train"}


def test_dry_names_the_changed_work_before(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(project, "describe", "images", 7)
    run("instruct", "minigpt4", Body(), dry=True)
    assert "would run after describe" in capsys.readouterr().out


def test_dry_does_no_work(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = Body()
    run("curate", None, body, dry=True)
    assert "would run here" in capsys.readouterr().out
    run("curate", None, body)
    run("curate", None, body, dry=True)
    assert capsys.readouterr().out.splitlines()[-1].endswith("finished: the outputs are in the store")
    assert body.times == 1


def test_altered_outputs_are_made_again(project: Path) -> None:
    run("curate", None, Body())
    store = Store(str(project / "store"))
    outputs = ArtifactStore(store).outputs(json.loads((project / "results/curate/run.json").read_text())["fingerprint"])
    assert outputs is not None
    store.write(store.uri("content", outputs["card.html"], "card.html"), b"else")
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


def test_second_process_waits(project: Path) -> None:
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
