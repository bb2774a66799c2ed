"""The origin of a run or a model version as flat tags: code, data, backbones and earlier stages."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt.storage import Manifest, names

if TYPE_CHECKING:
    from mlflow import MlflowClient

STAGE, MODEL, FINGERPRINT, INPUT = names.TAG_STAGE, names.TAG_MODEL, names.TAG_FINGERPRINT, names.TAG_INPUT
COMMIT, DIRTY, PARAMS = names.TAG_COMMIT, names.TAG_DIRTY, names.TAG_PARAMS
DATA, TEST_DATA = names.TAG_DATA, names.TAG_TEST_DATA
BACKBONE = "mgpt.backbone."


def _git(project: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def code_tags(project: Path) -> dict[str, str]:
    """Returns `git.commit`, `git.dirty` and the sha256 of `params.yaml` of a project folder.

    Values are "unknown" without git and "absent" without the file. Untracked files do not count as dirty, because
    results and logs are written next to the code; changed tracked files do, except `dvc.lock`, which the pipeline
    itself rewrites.
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
    """Returns digests of curated data: the whole, everything held out for evaluation, and each dataset.

    Raises:
        ValueError: the file is missing or is not a manifest, or it holds training data only.
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such data manifest; run the curate stage first")
    whole = Manifest.load(manifest)
    held_out = [entry for entry in whole.entries if entry.meta.get("split") != "train"]
    if not held_out:
        raise ValueError(f"{manifest}: only training data, so nothing can have been evaluated; curate a test split")
    known = sorted({str(entry.meta["dataset"]) for entry in whole.entries if "dataset" in entry.meta})
    datasets = {f"{DATA}.{name}": Manifest(whole.select(dataset=name)).digest for name in known}
    return {DATA: whole.digest, TEST_DATA: Manifest(held_out).digest, **datasets}


def read_backbones(weights: Path) -> dict[str, dict[str, Any]]:
    """Returns the frozen backbones that trained weights belong to, by name: id, revision, sha256, and uri where it is
    recorded.

    Raises:
        ValueError: the weights' config.json does not name them.
    """
    path = weights / "config.json"
    try:
        backbones: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["backbones"]
        incomplete = [name for name, backbone in backbones.items() if {"id", "revision", "sha256"} - set(backbone)]
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: does not name the backbones of the weights ({error!r}); save the model with save_trainable"
        ) from error
    if incomplete or not backbones:
        subject = f"no id, revision and sha256 of {', '.join(incomplete)}" if incomplete else "no backbone"
        raise ValueError(f"{path}: {subject}; weights without the hashes of their backbones cannot be registered")
    return backbones


def backbone_tags(weights: Path) -> dict[str, str]:
    """Returns id, revision and hash of every backbone of trained weights as `mgpt.backbone.<name>.<field>`.

    Raises:
        ValueError: the weights' config.json does not name them.
    """
    return {
        f"{BACKBONE}{name}.{field}": str(backbone[field])
        for name, backbone in read_backbones(weights).items()
        for field in ("id", "revision", "sha256")
    }


def stage_tags(client: MlflowClient, stages: Mapping[str, str]) -> dict[str, str]:
    """Returns fingerprint, MLflow run and commit of every stage of a model as `mgpt.<stage>.fingerprint`, `.run` and
    `.commit`.

    Args:
        stages: fingerprint by stage name.

    Raises:
        ValueError: a stage has no run, so the model's origin would be unknown.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    tags: dict[str, str] = {}
    for stage, fingerprint in stages.items():
        query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{STAGE}` = '{stage}'"
        runs = client.search_runs(experiments, filter_string=query, max_results=1)
        if not runs:
            raise ValueError(
                f"{stage}, fingerprint {fingerprint}: no MLflow run has these tags; run the stage with this "
                "tracking.uri"
            )
        tags |= {
            f"mgpt.{stage}.fingerprint": fingerprint,
            f"mgpt.{stage}.run": runs[0].info.run_id,
            f"mgpt.{stage}.commit": runs[0].data.tags.get(COMMIT, "unknown"),
        }
    return tags
