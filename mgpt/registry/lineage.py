"""What a run was made of, as flat tags: the code's commit, whether the tree was dirty, and the hash of `dvc.lock`."""

import hashlib
import subprocess
from pathlib import Path

COMMIT, DIRTY, DVC_LOCK = "git.commit", "git.dirty", "dvc.lock.sha256"


def _git(project: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def code_tags(project: Path) -> dict[str, str]:
    """`git.commit`, `git.dirty` and `dvc.lock.sha256` of a project folder; "unknown" or "absent" where there is none.

    Untracked files do not make the tree dirty: results and logs lie beside the code. Changed tracked files do.
    `dvc.lock` is left out of that test, because the chain itself rewrites it stage by stage.
    """
    commit = _git(project, "rev-parse", "HEAD")
    changes = _git(project, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    lock = project / "dvc.lock"
    return {
        COMMIT: commit or "unknown",
        DIRTY: "unknown" if changes is None else str(bool(changes)).lower(),
        DVC_LOCK: hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "absent",
    }
