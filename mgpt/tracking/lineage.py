"""What a run and a version were made of, as flat tags: code, data, backbones, and the stages before."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.storage import Manifest, names

if TYPE_CHECKING:
    from mlflow import MlflowClient

STAGE, SYSTEM, FINGERPRINT, INPUT = names.TAG_STAGE, names.TAG_MODEL, names.TAG_FINGERPRINT, names.TAG_INPUT
COMMIT, DIRTY, PARAMS = names.TAG_COMMIT, names.TAG_DIRTY, names.TAG_PARAMS
DATA, TEST_DATA = names.TAG_DATA, names.TAG_TEST_DATA


def _git(project: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def code_tags(project: Path) -> dict[str, str]:
    """Returns `git.commit`, `git.dirty` and the sha256 of `params.yaml` of a project folder; "unknown" or "absent" where
    there is none.

    Untracked files do not make the tree dirty: results and logs lie beside the code. Changed tracked files do, but for `dvc.lock`, which
    the chain itself rewrites.
    """
    commit = _git(project, "rev-parse", "HEAD")
    changes = _git(project, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return {
        COMMIT: commit or "unknown",
        DIRTY: "unknown" if changes is None else str(bool(changes)).lower(),
        PARAMS: _sha256(project / "params.yaml"),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def data_tags(manifest: Path) -> dict[str, str]:
    """Digests of curated data: of all, of everything that is not for training (what a model is measured on), and of each dataset.

    Raises:
        ValueError: the file is missing, is no manifest, or holds training data only.
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such data manifest; run the curate stage first")
    whole = Manifest.load(manifest)
    held_out = [entry for entry in whole.entries if entry.meta.get("split") != "train"]
    if not held_out:
        raise ValueError(f"{manifest}: only training data, so nothing could have been measured; curate a test split")
    known = sorted({str(entry.meta["dataset"]) for entry in whole.entries if "dataset" in entry.meta})
    datasets = {f"{DATA}.{name}": Manifest(whole.select(dataset=name)).digest for name in known}
    return {DATA: whole.digest, TEST_DATA: Manifest(held_out).digest, **datasets}


def backbone_tags(weights: Path) -> dict[str, str]:
    """Id, revision and hash of every frozen base that trained weights belong to, as `mgpt.base.<name>.<field>`.

    Raises:
        ValueError: the weights' config.json does not name them.
    """
    path = weights / "config.json"
    try:
        backbones = json.loads(path.read_text(encoding="utf-8"))["backbones"]
        tags = {
            f"mgpt.base.{name}.{field}": str(base[field])
            for name, base in backbones.items()
            for field in ("id", "revision", "sha256")
        }
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: does not name the backbones of the weights ({error!r}); save the model with save_trainable"
        ) from error
    if not tags:
        raise ValueError(f"{path}: names no base; weights without the hashes of their backbones cannot be registered")
    return tags


def stage_tags(client: MlflowClient, stages: Mapping[str, str]) -> dict[str, str]:
    """Identity, MLflow run and commit of every stage that a model went through, as `mgpt.<stage>.fingerprint`, `.run` and `.commit`.

    Args:
        stages: fingerprint by stage name.

    Raises:
        ValueError: a stage has no run, so the model's origin could not be told.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    tags: dict[str, str] = {}
    for stage, fingerprint in stages.items():
        query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{STAGE}` = '{stage}'"
        runs = client.search_runs(experiments, filter_string=query, max_results=1)
        if not runs:
            raise ValueError(
                f"{stage}, fingerprint {fingerprint}: no MLflow run tells of it; run the stage with this tracking.uri"
            )
        commit = runs[0].data.tags.get(COMMIT, "unknown")
        tags |= {
            f"mgpt.{stage}.fingerprint": fingerprint,
            f"mgpt.{stage}.run": runs[0].info.run_id,
            f"mgpt.{stage}.commit": commit,
        }
    return tags
