"""The digest of a stage's code: equal under every supported Python, and blind to comments, docstrings and layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mgpt.pipeline.code import CodeBase, read_source

ROOT = Path(__file__).parents[3]
# The tree of `tree` below. Another digest here means that every user's finished work would be repeated.
DIGEST = "82018e24851d5e2219cd261bc41b46352632a328da911c10b6ab9b1be5a5c521"
FILES = {
    "flows/__init__.py": "",
    "flows/train.py": '''
        """Docstring."""
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from mgpt.work import double
        if TYPE_CHECKING:
            from mgpt.unused import Nothing

        def main(name: str = "a", *, more: int | None = None, **rest: object) -> str:
            """Docstring."""
            from mgpt.pipeline.runner import run
            value = [*range(3), 1.5, 2j, b"x", ..., None, True, -1, u"kind"]
            match value:
                case [first, *others] if first:
                    pass
            return f"{name!r:>{more}} {{braces}} {value=}" "joined" f" {double(2):.2f}"
        ''',
    "mgpt/__init__.py": "",
    "mgpt/work/__init__.py": """
        from mgpt.work.numbers import double
        """,
    "mgpt/work/numbers.py": '''
        import asyncio
        from . import other
        TABLE = "table.yaml"

        class Doubler:
            """Docstring."""

            factor: int = 2

        async def wait(lock):
            async with lock as held, lock:
                return [x async for x in held if x]

        def double(x, /, y=1, *args):
            try:
                return (lambda z: z * Doubler.factor)(x)
            except* ValueError:
                raise
        ''',
    "mgpt/work/other.py": "DEFAULT = {'a': 1, **{}}\n",
    "mgpt/work/table.yaml": "a: 1\n",
    "mgpt/pipeline/runner.py": "run = None\n",
    "mgpt/unused.py": "Nothing = 1\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text).lstrip())
    return tmp_path


def code(tree: Path) -> CodeBase:
    return CodeBase({"mgpt": tree / "mgpt", "flows": tree / "flows"})


def replace(tree: Path, name: str, old: str, new: str) -> None:
    text = (tree / name).read_text()
    assert old in text
    (tree / name).write_text(text.replace(old, new))


def test_closure_follows_functions_and_leaves_out_what_only_runs_the_work(tree: Path) -> None:
    assert set(code(tree).closure("flows.train")) == {
        "flows.train",
        "mgpt.work",
        "mgpt.work.numbers",
        "mgpt.work.other",
    }


def test_digest_of_the_fixed_tree(tree: Path) -> None:
    assert code(tree).digest("train") == DIGEST


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_digest_is_equal_under_another_python(tree: Path, version: str) -> None:
    """Skipped where that Python is not installed; the module needs no other package."""
    found = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    script = (
        "import sys; from pathlib import Path; from mgpt.pipeline.code import CodeBase; tree = Path(sys.argv[1]); "
        "print(CodeBase({'mgpt': tree / 'mgpt', 'flows': tree / 'flows'}).digest('train'), sys.version_info[:2])"
    )
    for python in filter(None, found):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([python, "-c", script, str(tree)], capture_output=True, text=True, env=environment)
        if done.returncode == 0:
            assert done.stdout.split()[0] == DIGEST, done.stdout
            return
    pytest.skip(f"no Python {version}")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("flows/train.py", '"""Docstring."""', '"""Other."""'),
        ("flows/train.py", "    value = [", "    # why\n\n    value  =  ["),
        ("mgpt/work/numbers.py", '    """Docstring."""\n\n', ""),
        ("mgpt/pipeline/runner.py", "None", "1"),
        ("mgpt/unused.py", "1", "2"),
    ],
)
def test_digest_ignores(tree: Path, name: str, old: str, new: str) -> None:
    before = code(tree).digest("train")
    replace(tree, name, old, new)
    assert code(tree).digest("train") == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("flows/train.py", '"joined"', '"Joined"'),
        ("flows/train.py", "1.5", '"1.5"'),
        ("mgpt/work/numbers.py", "factor: int = 2", "factor: int = 3"),
        ("mgpt/work/numbers.py", "y=1", "y=True"),
        ("mgpt/work/other.py", "'a'", "'b'"),
        ("mgpt/work/table.yaml", "1", "2"),
    ],
)
def test_digest_follows(tree: Path, name: str, old: str, new: str) -> None:
    before = code(tree).digest("train")
    replace(tree, name, old, new)
    assert code(tree).digest("train") != before


def test_f_strings_are_canonical(tmp_path: Path) -> None:
    """Python 3.12 cuts texts in f-strings elsewhere than 3.11; how they are written does not matter."""
    digests = set()
    for text in ('x = f"a{{b}}{c}d"', 'x = f"a{{b}}" f"{c}" "d"', "x = (f'a{{'\n     f'b}}{c}d')"):
        (tmp_path / "a.py").write_text(text)
        digests.add(read_source(tmp_path / "a.py", "a").digest)
    assert len(digests) == 1


def test_installed_code_is_found_without_a_project_folder(tmp_path: Path) -> None:
    script = "from mgpt.pipeline.code import CodeBase; print(CodeBase.installed().digest('pretrain'))"
    command, environment = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == CodeBase.installed().digest("pretrain")
