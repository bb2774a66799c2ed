"""Preflight on a real Ray, with backbones and data in a real store: nodes and inputs that are not fit are named."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import yaml

from mgpt.config import load_settings
from mgpt.pipeline.preflight import check_inputs, node_problems, node_reports, preflight, versions
from mgpt.pipeline.stages import find_stage
from mgpt.storage import Manifest, Store
from mgpt.storage.artifacts import ArtifactStore
from mgpt.storage.names import RUN_FILE

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose backbones are downloaded and whose data is curated, for `pretrain minigpt4`."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    store = Store(str(tmp_path / "store"))
    store.put_folder(ROOT / "mgpt" / "models" / "shapes", store.uri("sources", "backbones"))
    root = store.uri("sources")
    backbones = [
        store.entry(uri.removeprefix(f"{root}/"), uri, source="backbones", unpack=False) for uri in store.list(root)
    ]
    data = []
    for dataset in ("laion", "cc_sbu", "vqav2"):
        uri = store.uri("curated", dataset, "train", "0.parquet")
        store.write(uri, dataset.encode() * 100)
        data.append(store.entry(f"{dataset}/train/0.parquet", uri, dataset=dataset, split="train", rows=1))
    for stage, entries in (("download", backbones), ("curate", data)):
        (tmp_path / "results" / stage).mkdir(parents=True)
        Manifest(entries).save(tmp_path / "results" / stage / "manifest.json")
    return tmp_path


def run(project: Path) -> list[dict[str, object]]:
    settings = load_settings(project / "params.yaml", {})
    return preflight(find_stage(settings, "pretrain", "minigpt4"), settings, project, Store(str(project / "store")))


def refusal(project: Path) -> str:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="preflight: nothing was started") as caught:
        run(project)
    assert time.monotonic() - begun < 60
    return str(caught.value)


def test_fit_cluster_passes(ray_here: None, project: Path) -> None:
    (report,) = run(project)
    assert report["versions"] == versions()
    assert report["problems"] == []
    assert int(str(report["memory"])) > 1 << 30


def test_emptied_store_is_reported_and_its_work_repeated(project: Path) -> None:
    store = Store(str(project / "store"))
    for stage in ("download", "curate"):
        folder = project / "results" / stage
        (folder / RUN_FILE).write_text(f'{{"fingerprint": "of-{stage}", "name": "{stage}"}}')
        ArtifactStore(store).commit(f"of-{stage}", folder, [RUN_FILE])

    def check(*stage: str) -> None:
        settings = load_settings(project / "params.yaml", {})
        check_inputs(find_stage(settings, stage[0], stage[1] if stage[1:] else None), project, store)

    check("pretrain", "minigpt4")
    check("download")
    curated = project / "store" / "curated"
    shutil.rmtree(curated / "vqav2")  # not in the mixture of minigpt4, nor described
    check("pretrain", "minigpt4")
    check("describe")
    with pytest.raises(ValueError, match=r"vqav2/train/0\.parquet: gone"):
        check("pretrain", "minigpt-v2")
    ArtifactStore(store).commit("of-curate", project / "results" / "curate", [RUN_FILE])
    (curated / "laion" / "train" / "0.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match="emptied or moved") as caught:
        check("pretrain", "minigpt4")
    assert "laion/train/0.parquet: 3 bytes, not 500" in str(caught.value)
    assert str(caught.value).endswith("`dvc repro --force curate` makes them")
    assert ArtifactStore(store).outputs("of-curate") is None  # so that it really does
    assert ArtifactStore(store).outputs("of-download") is not None
    shutil.rmtree(project / "store" / "sources" / "backbones" / "vision")
    with pytest.raises(ValueError, match=r"vision/config\.json: gone") as caught:
        check("pretrain", "minigpt4")
    assert "qformer" not in str(caught.value)
    assert "--force download curate" in str(caught.value)
    assert ArtifactStore(store).outputs("of-download") is None


def test_altered_missing_and_cut_files_are_named_at_once(ray_here: None, project: Path) -> None:
    curated = project / "store" / "curated"
    (curated / "laion" / "train" / "0.parquet").write_bytes(b"cut")
    path = curated / "cc_sbu" / "train" / "0.parquet"
    path.write_bytes(b"x" * path.stat().st_size)  # the size is right, the content is not
    (project / "store" / "sources" / "backbones" / "vision" / "config.json").unlink()
    message = refusal(project)
    assert "laion/train/0.parquet: 3 bytes" in message
    assert "cc_sbu/train/0.parquet" in message
    assert "backbones/vision/config.json: gone" in message
    assert "backbones: " in message  # the node could not read it either
    assert "re-run the stage that made it" in message


def test_data_outside_the_mixture_is_not_checked(ray_here: None, project: Path) -> None:
    (project / "store" / "curated" / "vqav2" / "train" / "0.parquet").unlink()
    run(project)


def test_plan_that_does_not_fit_is_refused(ray_here: None, project: Path) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["pretrain"]["minigpt4"] |= {"micro_batch_size": 500_000, "global_batch_size": 500_000}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    message = refusal(project)
    assert "pretrain@minigpt4 is planned with" in message
    assert "lower micro_batch_size" in message


def test_node_that_cannot_write_the_store_is_named(ray_here: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (report,) = node_reports(Store(str(tmp_path / "file" / "store")))
    (line,) = node_problems(versions(), report)
    assert line.startswith(str(report["node"]))
    assert "cannot be written" in line
    assert "permissions" in line


def test_node_with_another_library_is_named(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before this process's packages, and not before the node's, lies another version's metadata."""
    other = tmp_path / "other" / "peft-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1\n")
    there = versions()["peft"]
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert versions()["peft"] == "0.1"
    (report,) = node_reports(Store(str(tmp_path / "store")))
    (line,) = node_problems(versions(), report)
    assert line == f"{report['node']}: peft is {there}, here 0.1; install the same, as constraints.txt has it"


def test_differences_name_both_versions() -> None:
    there = {**versions(), "torch": "1.0", "peft": "missing"}
    lines = node_problems(
        versions(), {"node": "10.0.0.1", "versions": there, "problems": ["storage.root: s3://b cannot be written"]}
    )
    assert len(lines) == 3
    assert all(line.startswith("10.0.0.1: ") for line in lines)
    torch = next(line for line in lines if "torch" in line)
    assert "1.0" in torch
    assert versions()["torch"] in torch
    assert "cannot be written" in lines[-1]
