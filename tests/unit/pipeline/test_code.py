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
DIGEST = "575390cb2ca8fd09dee2e56291ae27ce6a06de7ab32de0f5354cfda884747fe3"
FILES = {
    "flows/__init__.py": "",
    "flows/train.py": '''
        """Docstring."""
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from mgpt.doubling import double
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
    "mgpt/doubling/__init__.py": """
        from mgpt.doubling.numbers import double
        """,
    "mgpt/doubling/numbers.py": '''
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
    "mgpt/doubling/other.py": "DEFAULT = {'a': 1, **{}}\n",
    "mgpt/doubling/table.yaml": "a: 1\n",
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
        "mgpt.doubling",
        "mgpt.doubling.numbers",
        "mgpt.doubling.other",
    }


def test_digest_of_the_fixed_tree(tree: Path) -> None:
    assert code(tree).digest("train") == DIGEST


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_digest_is_equal_under_another_python(tree: Path, version: str) -> None:
    """Skipped only where that Python is not installed.

    It lacks the project's packages, so `mgpt.storage`, of which the module needs `hashing` alone, is left empty.
    """
    found = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    script = (
        "import sys, types; from pathlib import Path; tree = Path(sys.argv[1]); "
        "storage = types.ModuleType('mgpt.storage'); storage.__path__ = [sys.argv[2]]; "
        "sys.modules['mgpt.storage'] = storage; "
        "from mgpt.pipeline.code import CodeBase; "
        "print(CodeBase({'mgpt': tree / 'mgpt', 'flows': tree / 'flows'}).digest('train'), sys.version_info[:2])"
    )
    for python in filter(None, found):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [python, "-c", script, str(tree), str(ROOT / "mgpt" / "storage")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if "command not found" in done.stderr:  # a name that pyenv has for a version that is not active
            continue
        assert done.stdout.split()[:1] == [DIGEST], done.stdout + done.stderr
        return
    pytest.skip(f"no Python {version}")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("flows/train.py", '"""Docstring."""', '"""Other."""'),
        ("flows/train.py", "    value = [", "    # why\n\n    value  =  ["),
        ("mgpt/doubling/numbers.py", '    """Docstring."""\n\n', ""),
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
        ("mgpt/doubling/numbers.py", "factor: int = 2", "factor: int = 3"),
        ("mgpt/doubling/numbers.py", "y=1", "y=True"),
        ("mgpt/doubling/other.py", "'a'", "'b'"),
        ("mgpt/doubling/table.yaml", "1", "2"),
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
