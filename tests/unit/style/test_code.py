"""Rules for code that ruff, mypy and import-linter do not know. Each failure lists every place."""

from __future__ import annotations

import ast
import re

from tests.fixtures.private_names import own_private_names, private_uses
from tests.fixtures.source_code import (
    docstrings,
    files,
    function_level_imports,
    imported,
    module_name,
    modules,
    place,
    tree,
)

LIBRARY = ("mgpt", "flows", "tools")
MOST_FUNCTION_LEVEL_IMPORTS = 40  # each of a heavy optional library, or of a module that imports one
MOST_PRIVATE_NAMES = 10
MOST_QUESTIONS = 0.01
QUESTION = re.compile(r"(What|Whether|Where|Who|How)\b")


def listing(found: list[str]) -> str:
    return f"{len(found)} found:\n" + "\n".join(found)


def test_few_imports_stand_in_functions() -> None:
    found = [
        f"{place(path, node)} {', '.join(imported(node))}"
        for path in modules("mgpt")
        if not module_name(path).startswith("mgpt.cli")
        for node in function_level_imports(path)
    ]
    assert len(found) <= MOST_FUNCTION_LEVEL_IMPORTS, listing(found)


def test_private_names_of_libraries_stand_in_compat_modules_alone() -> None:
    paths = modules(*LIBRARY)
    own = own_private_names(paths)
    found = [(path, use) for path in paths for use in private_uses(path, own)]
    outside = [use for path, use in found if path.name != "compat.py"]
    assert not outside, listing(outside)
    assert len(found) <= MOST_PRIVATE_NAMES, listing([use for _, use in found])


def test_modules_form_no_circle() -> None:
    """Stricter than import-linter: a module that imports its own package counts as well."""
    graph = _import_graph()
    circles = [" → ".join([*circle, circle[0]]) for circle in _circles(graph)]
    assert not circles, listing(circles)


def test_test_modules_import_no_test_module() -> None:
    found = [
        f"{place(path, node)} {name}"
        for path in modules("tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node)
        if name.startswith("tests.") and re.search(r"\.(test_\w+|conftest)(\.|$)", name)
    ]
    assert not found, listing(found)


def test_docstrings_open_with_a_verb_or_noun_phrase() -> None:
    found, total = [], 0
    for path in files(".py"):
        for node, text in docstrings(path):
            total += 1
            if QUESTION.match(text):
                found.append(f"{place(path, node)} {text.splitlines()[0][:80]}")
    assert len(found) <= MOST_QUESTIONS * total, listing(found)


def _import_graph() -> dict[str, set[str]]:
    """Modules of mgpt and flows, each with those that it imports, functions and TYPE_CHECKING blocks included."""
    paths = {module_name(path): path for path in modules("mgpt", "flows")}
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for target in imported(node):
                    module = target if target in paths else target.rpartition(".")[0]
                    if module in paths and module != name:
                        graph[name].add(module)
    return graph


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            members = [stack.pop()]
            while members[-1] != name:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for name in graph:
        if name not in index:
            visit(name)
    return found
