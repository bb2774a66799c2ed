"""dvc.yaml names all the code that a stage's result depends on: an edit of anything else cannot change a result."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from mgpt.pipeline.fingerprint import declarations

ROOT = Path(__file__).parents[3]
# Runs, records and carries the work, whatever it is; another version of it is the same work.
AROUND = (
    "mgpt/__init__.py",
    "mgpt/pipeline/runner.py",
    "mgpt/pipeline/fingerprint.py",
    "mgpt/storage/artifacts.py",
    "mgpt/storage/store.py",
    "mgpt/config/__init__.py",
    "mgpt/config/cross_validation.py",
    "mgpt/config/loader.py",
    "mgpt/config/restricted_view.py",
    "mgpt/config/base.py",
    "mgpt/config/infrastructure.py",
    "mgpt/execution/__init__.py",
    "mgpt/execution/session.py",
    "mgpt/execution/jobs.py",
    "mgpt/pipeline/preflight.py",
    "mgpt/data/__init__.py",
    "flows/__init__.py",
)
# Of these, other stages than the one named use only what finds things: the tracker, and the folder of a downloaded source.
FINDING = {"mgpt/registry": "promote", "mgpt/download": "download"}
STAGES = declarations(ROOT)


def file_of(module: str) -> str | None:
    path = ROOT / Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.relative_to(ROOT).as_posix()
    return None


@cache
def imported(file: str) -> frozenset[str]:
    """Files of this project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {one for name in names if name.split(".")[0] in ("mgpt", "flows") and (one := file_of(name))}
    return frozenset(found)


def reached(file: str) -> set[str]:
    """All files that a stage's module leads to."""
    seen: set[str] = set()
    todo = [file]
    while todo:
        one = todo.pop()
        if one in seen or one in AROUND:
            continue
        seen.add(one)
        todo += [other for other in imported(one) if not _around(other, file)]
    return seen


def _around(file: str, stage_file: str) -> bool:
    stage = Path(stage_file).stem
    return any(file.startswith(folder + "/") and stage != own for folder, own in FINDING.items())


@pytest.mark.parametrize("declared", STAGES, ids=lambda one: one.name)
def test_a_stage_declares_all_the_code_it_reaches(declared) -> None:
    covered = {
        name
        for name in reached(f"flows/{declared.stage}.py")
        if any(name == path or name.startswith(path + "/") for path in declared.code)
    }
    assert reached(f"flows/{declared.stage}.py") - covered == set()
