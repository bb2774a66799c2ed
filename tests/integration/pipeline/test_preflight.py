"""What preflight says of nodes and inputs that are not fit, on a real Ray, with backbones and data that are really there."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import yaml

from mgpt.pipeline.preflight import check_inputs, differences, look, preflight, versions
from mgpt.storage import Manifest, Store
from mgpt.storage.artifacts import RECORD, ArtifactStore

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
    return preflight("pretrain", "minigpt4", project, Store(str(project / "store")))


def refusal(project: Path) -> str:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="preflight: nothing was started") as caught:
        run(project)
    assert time.monotonic() - begun < 60
    return str(caught.value)


def test_what_is_fit_passes(ray_here: None, project: Path) -> None:
    (report,) = run(project)
    assert report["versions"] == versions()
    assert report["problems"] == []
    assert int(str(report["memory"])) > 1 << 30


def test_a_stage_that_runs_here_is_told_of_an_emptied_store(project: Path) -> None:
    store = Store(str(project / "store"))
    for stage in ("download", "curate"):
        folder = project / "results" / stage
        (folder / RECORD).write_text(f'{{"fingerprint": "of-{stage}", "name": "{stage}"}}')
        ArtifactStore(store).commit(f"of-{stage}", folder, [RECORD])

    def check(*stage: str) -> None:
        check_inputs(stage[0], stage[1] if stage[1:] else None, project, store)

    check("pretrain", "minigpt4")
    check("download")
    curated = project / "store" / "curated"
    shutil.rmtree(curated / "vqav2")  # not in the mixture of minigpt4, nor described
    check("pretrain", "minigpt4")
    check("describe")
    with pytest.raises(ValueError, match=r"vqav2/train/0\.parquet: gone"):
        check("pretrain", "minigpt-v2")
    ArtifactStore(store).commit("of-curate", project / "results" / "curate", [RECORD])
    (curated / "laion" / "train" / "0.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match="was it emptied") as caught:
        check("pretrain", "minigpt4")
    assert "laion/train/0.parquet: 3 bytes, not 500" in str(caught.value)
    assert str(caught.value).endswith("`dvc repro --force curate` makes them again")
    assert ArtifactStore(store).outputs("of-curate") is None  # so that it really does
    assert ArtifactStore(store).outputs("of-download") is not None
    shutil.rmtree(project / "store" / "sources" / "backbones" / "vision")
    with pytest.raises(ValueError, match=r"vision/config\.json: gone") as caught:
        check("pretrain", "minigpt4")
    assert "qformer" not in str(caught.value)
    assert "--force download curate" in str(caught.value)
    assert ArtifactStore(store).outputs("of-download") is None


def test_altered_lost_and_cut_files_are_named_at_once(ray_here: None, project: Path) -> None:
    curated = project / "store" / "curated"
    (curated / "laion" / "train" / "0.parquet").write_bytes(b"cut")
    path = curated / "cc_sbu" / "train" / "0.parquet"
    path.write_bytes(b"x" * path.stat().st_size)  # the size is right, the content is not
    (project / "store" / "sources" / "backbones" / "vision" / "config.json").unlink()
    told = refusal(project)
    assert "laion/train/0.parquet: 3 bytes" in told
    assert "cc_sbu/train/0.parquet" in told
    assert "backbones/vision/config.json: gone" in told
    assert "base weights" in told  # the node could not read it either
    assert "run the stage that made it again" in told


def test_data_that_the_stage_does_not_mix_is_not_looked_at(ray_here: None, project: Path) -> None:
    (project / "store" / "curated" / "vqav2" / "train" / "0.parquet").unlink()
    run(project)


def test_a_plan_that_does_not_fit_is_refused(ray_here: None, project: Path) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["pretrain"]["minigpt4"] |= {"micro_batch_size": 500_000, "global_batch_size": 500_000}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    told = refusal(project)
    assert "pretrain@minigpt4 is planned with" in told
    assert "lower micro_batch_size" in told


def test_a_node_that_cannot_write_the_store_is_named(ray_here: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (report,) = look(Store(str(tmp_path / "file" / "store")))
    (line,) = differences(versions(), report)
    assert line.startswith(str(report["node"]))
    assert "cannot be written" in line
    assert "permissions" in line


def test_a_node_with_another_library_is_named(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before this process's packages, and not before the node's, lies another version's metadata."""
    other = tmp_path / "other" / "peft-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1\n")
    there = versions()["peft"]
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert versions()["peft"] == "0.1"
    (report,) = look(Store(str(tmp_path / "store")))
    (line,) = differences(versions(), report)
    assert line == f"{report['node']}: peft is {there}, here 0.1; install the same, as constraints.txt has it"


def test_every_difference_is_told_with_both_versions() -> None:
    there = {**versions(), "torch": "1.0", "peft": "missing"}
    lines = differences(
        versions(), {"node": "10.0.0.1", "versions": there, "problems": ["storage.root: s3://b cannot be written"]}
    )
    assert len(lines) == 3
    assert all(line.startswith("10.0.0.1: ") for line in lines)
    torch = next(line for line in lines if "torch" in line)
    assert "1.0" in torch
    assert versions()["torch"] in torch
    assert "cannot be written" in lines[-1]
