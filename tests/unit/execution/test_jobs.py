"""Ray jobs: what is sent, and the answers of the job server."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mgpt.execution import jobs
from mgpt.execution.jobs import collect
from mgpt.execution.types import JobSpec

SPEC = JobSpec("pretrain@minigpt4", "pretrain", "minigpt4", "abc", ())
JOB = {"submission_id": SPEC.submission_id}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    files = {
        ".gitignore": "store/\n",
        ".env": "SECRET=1",
        "params.yaml": "a: 1",
        "mgpt/a.py": "a",
        "tests/t.py": "t",
        "store/big": "x" * 9999,
        "mgpt/new.py": "untracked",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", ".gitignore", "params.yaml", "mgpt/a.py"], cwd=folder, check=True)
    return folder


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_job_gets_code_without_secrets_and_data(project: Path, tmp_path: Path) -> None:
    size = collect(project, tmp_path / "sent", 1)
    names = sorted(path.relative_to(tmp_path / "sent").as_posix() for path in files_below(tmp_path / "sent"))
    assert names == [".gitignore", "mgpt/a.py", "mgpt/new.py", "params.yaml"]
    assert size == sum(path.stat().st_size for path in files_below(tmp_path / "sent"))


def test_too_large_project_is_refused_before_copying(project: Path, tmp_path: Path) -> None:
    (project / "mgpt" / "weights.bin").write_bytes(b"0" * 2_000_000)
    with pytest.raises(ValueError, match=r"upload_limit_mb 1;.*mgpt/weights\.bin 2\.0 MB"):
        collect(project, tmp_path / "sent", 1)
    assert not (tmp_path / "sent").exists()


def test_project_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="git init"):
        collect(tmp_path, tmp_path / "sent", 1)


@dataclass
class Client:
    """A job client whose server refuses some submissions, as one without a node agent does."""

    refusals: int = 0
    lost_replies: int = 0
    names: list[str] = field(default_factory=list)
    calls: int = 0

    def list_jobs(self) -> list[Any]:
        status = type("Status", (), {"value": "RUNNING"})
        return [type("Job", (), {"submission_id": name, "status": status}) for name in (None, *self.names)]

    def submit_job(self, submission_id: str) -> None:
        self.calls += 1
        if self.calls <= self.refusals:
            raise RuntimeError("500")
        self.names.append(submission_id)
        if self.calls <= self.lost_replies:
            raise RuntimeError("connection lost")


def test_submission_is_retried_until_the_cluster_accepts_it() -> None:
    client = Client(refusals=1)
    jobs._submit_once(client, JOB)  # type: ignore[arg-type]
    assert (client.calls, client.names) == (2, [SPEC.submission_id])


def test_submission_whose_reply_is_lost_is_not_repeated() -> None:
    client = Client(lost_replies=1)
    jobs._submit_once(client, JOB)  # type: ignore[arg-type]
    assert (client.calls, client.names) == (1, [SPEC.submission_id])


def test_refused_submission_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_SUBMIT_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="500"):
        jobs._submit_once(Client(refusals=9), JOB)  # type: ignore[arg-type]


def test_status_is_that_of_the_submission() -> None:
    client = Client(names=["other", SPEC.submission_id])
    assert jobs._status(client, SPEC.submission_id) == "RUNNING"  # type: ignore[arg-type]
    assert jobs._status(client, "missing") is None  # type: ignore[arg-type]
