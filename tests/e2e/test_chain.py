"""The whole chain with a small experiment: it runs, runs nothing twice, and repeats what a change affects.

Tests run in this order.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mgpt.config import load_settings
from mgpt.data.shards import scan_samples
from mgpt.pipeline.stages import Stage, pipeline_stages
from mgpt.storage import Manifest, sha256_file
from tests.fixtures.project import Project

pytestmark = pytest.mark.timeout(1800)
RATE = "instruct.minigpt-v2.learning_rate"
AFFECTED = ["instruct@minigpt-v2", "evaluate@minigpt-v2", "promote@minigpt-v2"]


@pytest.fixture(autouse=True)
def in_project(chain: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the params file and in manifests are relative to the project's folder."""
    monkeypatch.chdir(chain.folder)


def stages(project: Project) -> list[Stage]:
    """The stages of a project's params."""
    return pipeline_stages(load_settings(project.folder / "params.yaml", {}))


def ran(output: str) -> list[str]:
    """Stages whose command ran."""
    return re.findall(r"Running stage '([^']+)'", output)


def fingerprint(project: Project, folder: str) -> str:
    """The fingerprint of the work that gave a stage's results."""
    return str(json.loads((project.folder / folder / "run.json").read_text())["fingerprint"])


def weights(project: Project, *stage: str) -> bytes:
    return Path(project.folder, "results", *stage, "weights", "trainable.safetensors").read_bytes()


def test_every_stage_leaves_what_it_declares(chain: Project) -> None:
    declared = stages(chain)
    assert sorted(ran(chain.first_output)) == sorted(one.name for one in declared)
    for one in declared:
        for name in one.written:
            assert (chain.folder / one.folder / name).exists(), (one.name, name)
        assert f"== {one.name} " in chain.first_output


def test_report(chain: Project) -> None:
    page = chain.run("python", "-m", "mgpt", "report").stdout
    found = json.loads((chain.folder / "results" / "summary.json").read_text())
    assert found["champions"] == {"minigpt4": 1, "minigpt-v2": 1}
    assert set(found["stages"]) == {one.name for one in stages(chain)}
    assert 0 < found["orchestration_share"] < 1
    assert set(found["models"]["minigpt-v2"]["rec_accuracy"]) == {"value", "low", "high", "chance", "n"}
    assert "results/evaluate/minigpt-v2/images.png" in page


def test_one_mlflow_run_a_stage(chain: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{chain.folder / 'mlflow.db'}")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    by_fingerprint = {run.data.tags["mgpt.fingerprint"]: run for run in runs}
    assert len(by_fingerprint) == len(runs)
    for one in stages(chain):
        run = by_fingerprint[fingerprint(chain, one.folder)]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mgpt.stage"] == one.stage
        assert run.data.tags["git.commit"] == chain.run("git", "rev-parse", "HEAD").stdout.strip()
        tags = {name.removeprefix("mgpt.input.") for name in run.data.tags if name.startswith("mgpt.input.")}
        assert {entry.path for entry in one.inputs} == tags
    promoted = json.loads((chain.folder / "results/promote/minigpt-v2/run.json").read_text())["lineage"]
    assert set(promoted) == {
        "download",
        "curate",
        "pretrain@minigpt-v2",
        "multitask@minigpt-v2",
        "instruct@minigpt-v2",
        "evaluate@minigpt-v2",
    }


def test_curves_have_every_step_once_and_the_realised_mixture(chain: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{chain.folder / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    for one in [one for one in stages(chain) if one.stage in ("pretrain", "multitask", "instruct")]:
        settings = chain.params()[one.stage][one.model_name]
        (run,) = client.search_runs(experiments, f"tags.`mgpt.fingerprint` = '{fingerprint(chain, one.folder)}'")
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == list(range(1, settings["steps"] + 1)), one.name
        mixture = json.loads((chain.folder / one.folder / "metrics.json").read_text())["mixture"]
        assert set(mixture) == set(settings["mixture"])
        assert sum(share["samples"] for share in mixture.values()) == settings["steps"] * settings["global_batch_size"]
        summary = (chain.folder / one.folder / "summary.txt").read_text()
        for name, share in mixture.items():
            assert re.search(rf"{name} +declared .* realised {share['realised']:6.2%} ", summary), summary


def test_own_photographs_need_a_params_entry_alone(chain: Project) -> None:
    shards = Manifest.load(chain.folder / "results/curate/manifest.json").select(dataset="photographs")
    samples = [sample for shard in shards for sample in scan_samples(str(chain.folder / shard.uri))]
    assert {(one.task, one.images[0].width, one.images[0].height, one.licence) for one in samples} == {
        ("caption", 640, 427, "CC BY 4.0"), ("instruction", 640, 427, "CC BY 4.0"),
    }  # fmt: skip
    mixture = json.loads((chain.folder / "results/pretrain/minigpt-v2/metrics.json").read_text())["mixture"]
    assert mixture["photographs"]["samples"] > 0


def test_scores_have_slices_and_counts_of_missing_answers(chain: Project) -> None:
    folder = chain.folder / "results/evaluate/minigpt-v2"
    scores = json.loads((folder / "metrics.json").read_text())["scores"]["instruct"]
    assert all({"missing", "unparsed", "low", "high", "chance", "n"} <= set(score) for score in scores.values())
    assert {score["missing"] for score in scores.values()} == {0}
    slices = json.loads((folder / "slices.json").read_text())["instruct"]
    assert {name for metric in slices.values() for name in metric} >= {"objects", "size"}
    assert Image.open(folder / "images.png").width > 64


def test_one_version_a_model_with_its_lineage(chain: Project) -> None:
    from mgpt.registry.versions import all_versions
    from mgpt.tracking.client import connect

    client = connect(f"sqlite:///{chain.folder / 'mlflow.db'}")
    found = {version.model: version for version in all_versions(client)}
    assert {name: (version.number, version.aliases) for name, version in found.items()} == {
        "minigpt4": (1, ("champion",)), "minigpt-v2": (1, ("champion",)),
    }  # fmt: skip
    tags = found["minigpt-v2"].tags
    assert tags["git.commit"] == chain.run("git", "rev-parse", "HEAD").stdout.strip()
    assert tags["params.sha256"] == sha256_file(chain.folder / "params.yaml")
    used = Manifest.load(chain.folder / "results/promote/minigpt-v2/data.json")
    curated = Manifest.load(chain.folder / "results/curate/manifest.json")
    assert tags["mgpt.data"] == used.digest
    assert {entry.name for entry in used.entries} < {entry.name for entry in curated.entries}
    backbones = json.loads((chain.folder / "results/instruct/minigpt-v2/weights/config.json").read_text())["backbones"]
    assert {name: tags[f"mgpt.backbone.{name}.sha256"] for name in backbones} == {
        name: base["sha256"] for name, base in backbones.items()
    }
    assert client.get_run(tags["mgpt.instruct.run"]).data.tags["mgpt.fingerprint"] == fingerprint(
        chain, "results/instruct/minigpt-v2"
    )


def test_weights_have_one_home_in_the_store(chain: Project) -> None:
    """Next to the checked-out results, the store and DVC's cache hold each set of trained weights at most once."""
    for one in [one for one in stages(chain) if "weights" in one.outputs]:
        digest = sha256_file(chain.folder / one.folder / "weights" / "trainable.safetensors")
        size = (chain.folder / one.folder / "weights" / "trainable.safetensors").stat().st_size
        files = [path for path in chain.folder.rglob("*") if path.is_file() and path.stat().st_size == size]
        copies = [path.relative_to(chain.folder).parts[0] for path in files if sha256_file(path) == digest]
        assert copies.count("store") == 1, (one.name, copies)
        assert len([place for place in copies if place != "results"]) <= 2, (one.name, copies)


def test_champion_answers_about_a_photograph(chain: Project, tmp_path: Path) -> None:
    asked = ("--image", "photographs/china.jpg", "--prompt", "[refer] the roof", "--out", str(tmp_path / "answer.png"))
    chain.run("python", "-m", "mgpt", "chat", *asked)
    assert Image.open(tmp_path / "answer.png").size == (1280, 854)  # the smaller side is enlarged to 512 at least


def test_card_shows_the_training_text(chain: Project, tmp_path: Path) -> None:
    chain.run("python", "-m", "mgpt", "data", "card", "minigpt-v2", "--out", str(tmp_path / "card.html"))
    text = html.unescape((tmp_path / "card.html").read_text())
    assert re.search(r"\[INST\] ?<Img>\[16 image tokens\]</Img>", text)
    assert re.search(r"\[/INST\]<mark>[^<]+</s></mark>", text)
    refused = chain.run("python", "-m", "mgpt", "data", "card", "minigpt4", "--stage", "multitask", check=False)
    assert refused.returncode == 2
    assert "multitask does not train minigpt4; stages and models are" in refused.stderr


def test_repro_twice_is_noop(chain: Project) -> None:
    before = os.times()
    assert ran(chain.repro()) == []
    after = os.times()
    # Seconds of a processor, not of the clock: those grow with whatever else the machine does.
    assert after.children_user + after.children_system - before.children_user - before.children_system <= 5


def test_changed_rate_repeats_what_it_affects_from_step_0(chain: Project) -> None:
    before = weights(chain, "instruct", "minigpt-v2")
    old = chain.params()["instruct"]["minigpt-v2"]["learning_rate"]
    chain.set(RATE, old / 2)
    output = chain.repro()
    assert ran(output) == AFFECTED
    assert re.search(r"began at step +0\n", output)
    changed = weights(chain, "instruct", "minigpt-v2")
    assert changed != before
    champion = json.loads((chain.folder / "results/promote/minigpt-v2/decision.json").read_text())["champion"]
    chain.set(RATE, old)
    assert "began at step" not in "".join(chain.repro())
    assert weights(chain, "instruct", "minigpt-v2") == before
    chain.run("python", "-m", "mgpt", "report")  # the champion of now, not of the decision
    assert json.loads((chain.folder / "results" / "summary.json").read_text())["champions"]["minigpt-v2"] == champion


def test_finished_work_is_restored_without_dvcs_cache(chain: Project) -> None:
    before = weights(chain, "instruct", "minigpt-v2")
    timing = (chain.folder / "results/instruct/minigpt-v2/timing.json").read_text()
    for path in (".dvc/cache", "results/instruct/minigpt-v2"):
        shutil.rmtree(chain.folder / path)
    output = chain.repro("--single-item", "--force", "instruct@minigpt-v2")
    assert "is finished; its outputs are in" in output
    assert weights(chain, "instruct", "minigpt-v2") == before
    assert (chain.folder / "results/instruct/minigpt-v2/timing.json").read_text() == timing


def test_dry_prints_the_state(chain: Project) -> None:
    printed = chain.run("python", "-m", "flows", "pretrain", "minigpt4", "--dry").stdout
    assert re.fullmatch(r"pretrain@minigpt4  [0-9a-f]{16}  finished: .*\n", printed)
    other = chain.elsewhere(MGPT_STORAGE__ROOT=str(chain.folder / "empty-store"))
    assert "would run here" in other.run("python", "-m", "flows", "pretrain", "minigpt4", "--dry").stdout


def test_files_match_their_manifests(chain: Project) -> None:
    manifests = [f"results/{stage}/manifest.json" for stage in ("download", "curate", "describe")]
    chain.run("python", "-m", "mgpt", "verify", *manifests)


def test_mistakes_stop_the_chain_before_it_starts(chain: Project) -> None:
    text = (chain.folder / "params.yaml").read_text()
    wrong = {
        "download.paralel": 4,
        "pretrain.minigpt4.steps": "many",
        "multitask.minigpt-v2.mixture.vqav2": -1,
        "describe.review": "no/such/review.csv",
        "instruct.minigpt-v2.micro_batch_size": 64,
    }
    try:
        for key, value in wrong.items():
            chain.set(key, value)
        done = chain.run("dvc", "repro", check=False)
    finally:
        (chain.folder / "params.yaml").write_text(text)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "5 errors, nothing was started" in output
    for key, value in wrong.items():
        assert re.search(rf"{re.escape(key)} = {re.escape(repr(value))}\n\s+rule: .+\n\s+fix:  .+\n", output), output
    # DVC removes a stage's old outputs before it starts its command. With the mistakes corrected they are restored,
    # from DVC's cache or by the stage, and no work is repeated.
    corrected = chain.repro()
    assert corrected.count("is finished; its outputs are in") == len(ran(corrected))
    assert (chain.folder / "results/download/manifest.json").is_file()
