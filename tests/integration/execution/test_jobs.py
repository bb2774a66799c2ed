"""What a job is sent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mgpt.execution.jobs import collect


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
    }
    for name, text in {**files, "mgpt/new.py": "untracked"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", ".gitignore", "params.yaml", "mgpt/a.py"], cwd=folder, check=True)
    return folder


def test_code_is_sent_and_secrets_and_data_are_not(project: Path, tmp_path: Path) -> None:
    size = collect(project, tmp_path / "sent", 1)
    names = sorted(
        path.relative_to(tmp_path / "sent").as_posix() for path in (tmp_path / "sent").rglob("*") if path.is_file()
    )
    assert names == [".gitignore", "mgpt/a.py", "mgpt/new.py", "params.yaml"]
    assert size == sum(path.stat().st_size for path in (tmp_path / "sent").rglob("*") if path.is_file())


def test_too_much_is_refused_with_the_largest_before_anything_is_copied(project: Path, tmp_path: Path) -> None:
    (project / "mgpt" / "weights.bin").write_bytes(b"0" * 2_000_000)
    with pytest.raises(ValueError, match=r"upload_limit_mb 1;.*mgpt/weights\.bin 2\.0 MB"):
        collect(project, tmp_path / "sent", 1)
    assert not (tmp_path / "sent").exists()


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="git init"):
        collect(tmp_path, tmp_path / "sent", 1)
