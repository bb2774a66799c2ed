"""Runs a stage as a Ray job: one job per fingerprint, followed from anywhere, its outputs returned through the store.

The submission id contains the fingerprint, so a client that died finds its job again and never starts a second one.
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

import aiohttp
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from mgpt.config import JOB_FINGERPRINT, Settings
from mgpt.config.infrastructure import ClusterSettings
from mgpt.execution.session import forwarded_environment
from mgpt.execution.types import JOB_INPUTS, JobSpec
from mgpt.storage import Store
from mgpt.storage.artifacts import ArtifactStore
from mgpt.tracking.client import absolute_uri

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Folders that no job needs; results travel through the store.
_EXCLUDED = ("tests", "docs", "infra", "benchmarks", "results", "store", ".dvc", ".ci", ".git")
_POLL_SECONDS = 0.5
_SUBMIT_SECONDS = 60.0  # limit for a cluster that has just started to accept jobs
_OUTAGE_SECONDS = 600.0  # limit for a job server that does not answer


def job_state(spec: JobSpec, settings: ClusterSettings) -> str:
    """Returns the job's id and state in one line. Raises ValueError if the job server cannot be used."""
    status = _status(_client(settings), spec.submission_id) or "not submitted"
    return f"job {spec.submission_id} at {settings.address}: {status}"


def follow(spec: JobSpec, settings: Settings, store: Store, project: Path) -> None:
    """Submits the stage, or attaches to its running job; prints the job's log and returns when it has succeeded.

    Raises:
        ValueError: the job server cannot be used, or the project is too large to send.
        SystemExit: the job failed; the code is that of its entry point.
    """
    client, name = _client(settings.cluster), spec.submission_id
    status = _status(client, name)
    if status in ("PENDING", "RUNNING"):
        print(f"attached to job {name} ({status}) at {settings.cluster.address}", flush=True)
    else:
        if status is not None:  # it ended without a record of finished work; a training resumes from its checkpoint
            client.delete_job(name)
        _submit(client, spec, settings, store, project)
    code = _wait(client, name)
    if code != 0:
        raise SystemExit(code)


def _client(settings: ClusterSettings) -> JobSubmissionClient:
    # Ray reads the mode when it is imported, and without it sends no token, even where one is configured.
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if has_token or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(settings.address)
    except Exception as error:
        fix = "start the cluster, open the tunnel to it, or set RAY_AUTH_TOKEN_PATH to its token"
        raise ValueError(f"cluster.address: {settings.address} cannot be used ({error}); {fix}") from error


def _status(client: JobSubmissionClient, name: str) -> str | None:
    """Returns the status of the job with this submission id, or None if there is none."""
    return next((job.status.value for job in client.list_jobs() if job.submission_id == name), None)


def _submit(client: JobSubmissionClient, spec: JobSpec, settings: Settings, store: Store, project: Path) -> None:
    inputs = {path: ArtifactStore(store).put(project / path) for path in spec.inputs}
    variables = {
        **forwarded_environment(),
        JOB_FINGERPRINT: spec.fingerprint,
        JOB_INPUTS: json.dumps(inputs),
        "MGPT_STORAGE__ROOT": store.root,
        "MGPT_TRACKING__URI": absolute_uri(settings.tracking.uri, project),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        size = collect(project, Path(folder), settings.cluster.upload_limit_mb)
        job = {
            "entrypoint": " ".join(["python", "-m", "flows", *filter(None, [spec.stage, spec.model_name])]),
            "submission_id": spec.submission_id,
            "runtime_env": {"working_dir": folder, "env_vars": variables},
            "metadata": {"stage": spec.name, "fingerprint": spec.fingerprint},
        }
        try:
            _submit_once(client, job)
        except RuntimeError as error:
            raise ValueError(
                f"cluster.address: {settings.cluster.address} did not accept the job within {_SUBMIT_SECONDS:.0f} s "
                f"({error}); check its nodes with `ray status`"
            ) from error
    print(f"submitted job {spec.submission_id} to {settings.cluster.address} ({size / 1e6:.1f} MB of code)", flush=True)


def _submit_once(client: JobSubmissionClient, job: dict[str, Any]) -> None:
    """Submits the job unless it exists. Retries, since a cluster that has just started has no agent to run it yet."""
    policy = Retrying(
        retry=retry_if_exception_type(RuntimeError),
        stop=stop_after_delay(_SUBMIT_SECONDS),
        wait=wait_fixed(1),
        reraise=True,
    )
    for attempt in policy:
        with attempt:
            try:
                client.submit_job(**job)
            except RuntimeError:
                if _status(client, job["submission_id"]) is None:  # else another client, or a lost reply, submitted it
                    raise


def collect(project: Path, folder: Path, limit_mb: float) -> int:
    """Copies the files of the project that a job needs, those that git tracks or would track; returns their bytes.

    Raises:
        ValueError: the project is no git repository, or the files exceed the limit; names the largest.
    """
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise ValueError(
            f"{project} is not a git repository, which determines the files that a job needs: "
            f"{listed.stderr.strip()}; run git init"
        )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    kept = [name for name in names if name.parts[0] not in _EXCLUDED and name.name != ".env"]
    sizes = {name: (project / name).stat().st_size for name in kept if (project / name).is_file()}
    total = sum(sizes.values())
    if total > limit_mb * 1e6:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise ValueError(
            f"a job would send {total / 1e6:.1f} MB, above cluster.upload_limit_mb {limit_mb:g}; largest: "
            f"{', '.join(f'{name} {sizes[name] / 1e6:.1f} MB' for name in largest)}; "
            "exclude them with .gitignore, or raise cluster.upload_limit_mb"
        )
    for name in sizes:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / name, folder / name)
    return total


def _wait(client: JobSubmissionClient, name: str) -> int:
    """Prints the job's log until it ends, reconnecting after outages; returns the entry point's exit code."""
    log, answered = _JobLog(client, name), time.monotonic()
    while True:
        try:
            asyncio.run(log.print_new())
            info = client.get_job_info(name)
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if time.monotonic() - answered > _OUTAGE_SECONDS:
                raise ValueError(
                    f"the job server has not answered for {_OUTAGE_SECONDS:.0f} s ({error}); "
                    f"run the stage again to attach to {name}"
                ) from error
            time.sleep(2)
            continue
        answered = time.monotonic()
        if info.status.is_terminal():
            succeeded = info.status.value == "SUCCEEDED"
            print(f"job {name} {info.status.value.lower()}{'' if succeeded else f': {info.message}'}", flush=True)
            return 0 if succeeded else info.driver_exit_code or 1
        time.sleep(_POLL_SECONDS)


class _JobLog:
    """The log of a job, printed once, whatever the number of connections."""

    def __init__(self, client: JobSubmissionClient, name: str) -> None:
        self._client, self._name, self._printed = client, name, 0

    async def print_new(self) -> None:
        """Prints the characters that were not printed yet, until the stream ends."""
        seen = 0
        async for text in self._client.tail_job_logs(self._name):
            seen += len(text)
            new = seen - self._printed
            if new > 0:
                print(text[-new:] if new < len(text) else text, end="", flush=True)
                self._printed = seen
