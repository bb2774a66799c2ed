"""The whole (shrunken) chain: it runs, runs nothing twice, and runs exactly what a change is behind. Tests run in this order."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mgpt.identity import declarations
from tests.chain.project import Project

pytestmark = [pytest.mark.chain, pytest.mark.timeout(1800)]
RATE = "instruct.minigpt-v2.learning_rate"
BEHIND = ["instruct@minigpt-v2", "evaluate@minigpt-v2", "promote@minigpt-v2"]


def ran(output: str) -> list[str]:
    """Stages whose command ran."""
    return re.findall(r"Running stage '([^']+)'", output)


def weights(project: Project, *stage: str) -> bytes:
    return Path(project.folder, "results", *stage, "weights", "trainable.safetensors").read_bytes()


def test_every_stage_ran_and_left_what_it_declares(chain: Project) -> None:
    declared = declarations(chain.folder)
    assert sorted(ran(chain.first_output)) == sorted(one.name for one in declared)
    for one in declared:
        for path in one.outputs:
            assert (chain.folder / path).exists(), path
        assert f"== {one.name} " in chain.first_output


def test_the_report_ends_the_chain(chain: Project) -> None:
    page = chain.run("python", "-m", "mgpt", "report").stdout
    found = json.loads((chain.folder / "results" / "summary.json").read_text())
    assert found["champions"] == {"minigpt4": 1, "minigpt-v2": 1}
    assert set(found["stages"]) == {one.name for one in declarations(chain.folder)}
    assert 0 < found["orchestration_share"] < 1
    assert set(found["systems"]["minigpt-v2"]["refer_accuracy"]) == {"value", "low", "high", "chance", "n"}
    assert "results/evaluate/minigpt-v2/pictures.png" in page


def test_each_stage_has_one_mlflow_run_with_its_lineage(chain: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{chain.folder / 'mlflow.db'}")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    by_identity = {run.data.tags["mgpt.identity"]: run for run in runs}
    assert len(by_identity) == len(runs)
    for one in declarations(chain.folder):
        record = json.loads((chain.folder / one.folder / "run.json").read_text())
        run = by_identity[record["identity"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mgpt.stage"] == one.stage
        assert run.data.tags["git.commit"] == chain.run("git", "rev-parse", "HEAD").stdout.strip()
        assert set(one.inputs) == {name.removeprefix("mgpt.input.") for name in run.data.tags if name.startswith("mgpt.input.")}
    promoted = json.loads((chain.folder / "results/promote/minigpt-v2/run.json").read_text())["lineage"]
    assert set(promoted) == {"download", "curate", "pretrain@minigpt-v2", "multitask", "instruct@minigpt-v2", "evaluate@minigpt-v2"}


def test_again_nothing_runs(chain: Project) -> None:
    assert ran(chain.repro()) == []


def test_a_changed_rate_runs_what_is_behind_it_from_the_first_step(chain: Project) -> None:
    before = weights(chain, "instruct", "minigpt-v2")
    old = chain.params()["instruct"]["minigpt-v2"]["learning_rate"]
    chain.set(RATE, old / 2)
    output = chain.repro()
    assert ran(output) == BEHIND
    assert re.search(r"began at step +0\n", output)
    changed = weights(chain, "instruct", "minigpt-v2")
    assert changed != before
    chain.set(RATE, old)
    assert "began at step" not in "".join(chain.repro())
    assert weights(chain, "instruct", "minigpt-v2") == before


def test_changed_back_nothing_trains_even_without_dvcs_memory(chain: Project) -> None:
    before = weights(chain, "instruct", "minigpt-v2")
    timing = (chain.folder / "results/instruct/minigpt-v2/timing.json").read_text()
    for path in (".dvc/cache", "results/instruct/minigpt-v2"):
        shutil.rmtree(chain.folder / path)
    output = chain.repro("--single-item", "--force", "instruct@minigpt-v2")
    assert "is finished; its outputs are in" in output
    assert weights(chain, "instruct", "minigpt-v2") == before
    assert (chain.folder / "results/instruct/minigpt-v2/timing.json").read_text() == timing


def test_dry_says_what_would_happen(chain: Project) -> None:
    said = chain.run("python", "-m", "flows", "pretrain", "minigpt4", "--dry").stdout
    assert re.fullmatch(r"pretrain@minigpt4  [0-9a-f]{16}  finished: .*\n", said)
    other = chain.elsewhere(MGPT_STORAGE__ROOT=str(chain.folder / "empty-store"))
    assert "would run here" in other.run("python", "-m", "flows", "pretrain", "minigpt4", "--dry").stdout


def test_every_file_is_as_its_manifest_says(chain: Project) -> None:
    manifests = [f"results/{stage}/manifest.json" for stage in ("download", "curate", "describe")]
    chain.run("python", "-m", "mgpt", "verify", *manifests)


def test_mistakes_stop_the_chain_before_it_starts(chain: Project) -> None:
    text = (chain.folder / "params.yaml").read_text()
    try:
        chain.set("pretrain.minigpt4.steps", "many")
        chain.set("multitask.minigpt-v2.mixture.vqav2", -1)
        done = chain.run("dvc", "repro", check=False)
        assert done.returncode != 0
        told = done.stdout + done.stderr
        assert "pretrain.minigpt4.steps" in told
        assert "multitask.minigpt-v2.mixture.vqav2" in told
        assert "2 mistakes, nothing was started" in told
    finally:
        (chain.folder / "params.yaml").write_text(text)
