"""Runs a stage as a Ray job: one job a fingerprint, followed from anywhere, its outputs brought back through the store.

The submission id is the fingerprint, so a client that died finds its job again and never starts a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt.config import JOB_FINGERPRINT, Settings
from mgpt.config.infrastructure import ClusterSettings
from mgpt.execution.session import forwarded_environment
from mgpt.execution.types import JOB_INPUTS, JobSpec
from mgpt.storage import Store
from mgpt.storage.artifacts import ArtifactStore

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# What a job never needs; results travel through the store.
_LEFT_OUT = ("tests", "docs", "infra", "benchmarks", "results", "store", ".dvc", ".ci", ".git")
_POLL_SECONDS = 0.5
_START_SECONDS = 120.0  # how long a cluster may take until it accepts jobs
_PATIENCE_SECONDS = 600.0  # how long a client waits for a job server that does not answer


def submission_id(spec: JobSpec) -> str:
    """Returns the job's id: readable, and the same for the same work."""
    return f"{spec.name.replace('@', '-')}-{spec.fingerprint}"


def job_state(spec: JobSpec, settings: ClusterSettings) -> str:
    """Returns the job's id and state, or that there is none yet. Raises ValueError when the job server cannot be used."""
    name = submission_id(spec)
    return f"job {name} at {settings.address}: {_status(_client(settings), name) or 'not submitted'}"


def follow(spec: JobSpec, settings: Settings, store: Store, project: Path) -> None:
    """Submits the stage, or attaches to its running job, prints the job's log, and returns when it succeeded.

    Raises:
        ValueError: the job server cannot be used, or what would be sent is too large.
        SystemExit: the job failed; the code is that of its entry point.
    """
    client, name = _client(settings.cluster), submission_id(spec)
    status = _status(client, name)
    if status in ("PENDING", "RUNNING"):
        print(f"attached to job {name} ({status}) at {settings.cluster.address}", flush=True)
    else:
        if (
            status is not None
        ):  # it ended without a record of finished work: the training goes on from its last checkpoint
            client.delete_job(name)
        _submit(client, name, spec, settings, store, project)
    code = _wait(client, name)
    if code != 0:
        raise SystemExit(code)


def _client(settings: ClusterSettings) -> JobSubmissionClient:
    # Ray's client sends a token only when told to before it is imported, even where one is configured.
    if (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").exists()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(settings.address)
    except Exception as error:
        fix = "start the cluster, open the tunnel to it, or set RAY_AUTH_TOKEN_PATH to its token"
        raise ValueError(f"cluster.address: {settings.address} cannot be used ({error}); {fix}") from error


def _status(client: JobSubmissionClient, name: str) -> str | None:
    try:
        return str(client.get_job_status(name).value)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise


def _submit(
    client: JobSubmissionClient,
    name: str,
    spec: JobSpec,
    settings: Settings,
    store: Store,
    project: Path,
) -> None:
    inputs = {path: ArtifactStore(store).put(project / path) for path in spec.inputs}
    variables = forwarded_environment() | _job_variables(spec.fingerprint, inputs, settings, store, project)
    command = " ".join(["python", "-m", "flows", spec.stage, *([spec.model_name] if spec.model_name else [])])
    with tempfile.TemporaryDirectory() as folder:
        size = collect(project, Path(folder), settings.cluster.upload_limit_mb)
        metadata = {"stage": spec.name, "fingerprint": spec.fingerprint}
        _hand_in(client, command, name, {"working_dir": folder, "env_vars": variables}, metadata)
    print(f"submitted job {name} to {settings.cluster.address} ({size / 1e6:.1f} MB of code)", flush=True)


def _hand_in(
    client: JobSubmissionClient, command: str, name: str, environment: dict[str, Any], metadata: dict[str, str]
) -> None:
    """Submits the job; a cluster that has only just started is given time, and a job that another client submitted is
    ours too.
    """
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.submit_job(entrypoint=command, submission_id=name, runtime_env=environment, metadata=metadata)
        except RuntimeError as error:
            if "already exists" in str(error):
                return
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise ValueError(
                    f"cluster.address: the cluster does not take the job ({error}); look at its nodes with `ray status`"
                ) from error
            time.sleep(1)
        else:
            return


def _job_variables(
    fingerprint: str, inputs: dict[str, str], settings: Settings, store: Store, project: Path
) -> dict[str, str]:
    from mgpt.tracking.client import absolute_uri

    return {
        JOB_FINGERPRINT: fingerprint,
        JOB_INPUTS: json.dumps(inputs),
        "MGPT_STORAGE__ROOT": store.root,
        "MGPT_TRACKING__URI": absolute_uri(settings.tracking.uri, project),
        "OMP_NUM_THREADS": "1",
    }


def collect(project: Path, folder: Path, limit_mb: float) -> int:
    """Copies what a job needs of the project into a folder: files that git tracks or would track. Returns their bytes.

    Raises:
        ValueError: more than the limit; names the largest.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=project, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        raise ValueError(
            f"{project} is no git repository, so it is not known which files a job needs: {listed.stderr.strip()}; run git init"
        )
    names = [
        name
        for name in listed.stdout.split("\0")
        if name and Path(name).parts[0] not in _LEFT_OUT and Path(name).name != ".env"
    ]
    sizes = {name: (project / name).stat().st_size for name in names if (project / name).is_file()}
    total = sum(sizes.values())
    if total > limit_mb * 1e6:
        largest = ", ".join(
            f"{name} {sizes[name] / 1e6:.1f} MB" for name in sorted(sizes, key=lambda name: -sizes[name])[:5]
        )
        fix = "leave them out with .gitignore, or raise cluster.upload_limit_mb"
        raise ValueError(
            f"a job would send {total / 1e6:.1f} MB, above cluster.upload_limit_mb {limit_mb:g}; largest: {largest}; {fix}"
        )
    for name in sizes:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / name, target)
    return total


def _wait(client: JobSubmissionClient, name: str) -> int:
    """Prints the job's log until it ends; returns the entry point's exit code. A lost connection is taken up again."""
    from ray.job_submission import JobStatus

    shown, lost = 0, None
    while True:
        try:
            shown = asyncio.run(_tail(client, name, shown))
            info = client.get_job_info(name)
            lost = None
        except (RuntimeError, OSError) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > _PATIENCE_SECONDS:
                raise ValueError(
                    f"the job server has not answered for {_PATIENCE_SECONDS:.0f} s ({error}); run again to attach to {name}"
                ) from error
            time.sleep(2)
            continue
        if info.status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
            print(
                f"job {name} {info.status.value.lower()}"
                + (f": {info.message}" if info.status != JobStatus.SUCCEEDED else ""),
                flush=True,
            )
            return 0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code or 1
        time.sleep(_POLL_SECONDS)


async def _tail(client: JobSubmissionClient, name: str, shown: int) -> int:
    """Prints the log's characters after the first `shown`; returns how many were seen in all."""
    seen = 0
    async for text in client.tail_job_logs(name):
        seen += len(text)
        if seen > shown:
            print(text[-(seen - shown) :] if seen - shown < len(text) else text, end="", flush=True)
            shown = seen
    return max(seen, shown)
