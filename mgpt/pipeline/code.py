"""The code that can change a stage's result, and one digest of it.

The code of a stage is the import closure of `flows/<stage>.py` inside `mgpt` and `flows`, function-level imports
included, without the packages of `IGNORED`. A package's `__init__` counts where a name is imported from the package
itself: it merely gathers names. Files of the package that a module names in a string (`tasks.yaml`) count with it.

What is hashed is the syntax tree without docstrings, and therefore without comments and layout, in a form that is the
same under every supported Python. `ast.dump` is not: its fields come and go between versions.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mgpt.storage.hashing import sha256_bytes, sha256_file, sha256_json

PACKAGES = ("mgpt", "flows")
# Modules and packages that run, record, carry, price or present the work, whatever it is. They are neither hashed nor
# followed.
IGNORED = (
    "mgpt.cli",
    "mgpt.config",  # values of settings are part of the fingerprint by themselves, defaults included
    "mgpt.conversion",
    "mgpt.execution.compat",
    "mgpt.execution.jobs",
    "mgpt.execution.session",
    "mgpt.pipeline",
    "mgpt.planning",
    "mgpt.reporting",
    "mgpt.serving",
    "mgpt.storage",
    "mgpt.tracking",
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Fields that say nothing about what a program does, or that not every supported Python has.
_DROPPED = {"ctx", "type_comment", "type_ignores"}


@dataclass(frozen=True)
class Source:
    """One file of a closure: digest of its code, imports (module, names), and files of its package that it names."""

    digest: str
    imports: tuple[tuple[str, tuple[str, ...]], ...]
    resources: tuple[Path, ...]


@dataclass(frozen=True)
class CodeBase:
    """The modules of `PACKAGES`, found where Python would import them, or below other `roots` (folder by package).

    Files are read once, so an instance is of one moment.
    """

    roots: Mapping[str, Path]
    _sources: dict[Path, Source] = field(default_factory=dict, compare=False, repr=False)
    _imports: dict[Path, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def installed(cls) -> CodeBase:
        """Returns the code that this Python imports: a project's folder, or an installed wheel."""
        return cls({package: _package_folder(package) for package in PACKAGES})

    def without(self, edited: Iterable[Path]) -> CodeBase:
        """Returns the same code base, which reads the edited files again."""
        skipped = set(edited)
        sources = {path: one for path, one in self._sources.items() if path not in skipped}
        return CodeBase(self.roots, sources, {path: one for path, one in self._imports.items() if path in sources})

    def digest(self, stage: str) -> str:
        """Returns the digest of a stage's code.

        It changes with any edit that can change the result. Comments, docstrings and layout do not change it.
        """
        closure = self.closure(f"flows.{stage}")
        content = {module: self._source(path).digest for module, path in closure.items()}
        resources = {resource for path in closure.values() for resource in self._source(path).resources}
        return sha256_json([content, sorted((path.name, sha256_file(path)) for path in resources)])

    def closure(self, module: str) -> dict[str, Path]:
        """Returns the file of each module that `module` leads to, itself included, by module name."""
        found: dict[str, Path] = {}
        todo = [module]
        while todo:
            name = todo.pop()
            path = None if name in found or is_ignored(name) else self.file_of(name)
            if path is None:
                continue
            found[name] = path
            todo += self._imported(path)
        return dict(sorted(found.items()))

    def file_of(self, module: str) -> Path | None:
        """Returns the file of a module or of a package's `__init__`, or None for a module that is not of `PACKAGES`."""
        package, *rest = module.split(".")
        if package not in self.roots:
            return None
        path = self.roots[package].joinpath(*rest)
        files = (path.with_suffix(".py"), path / "__init__.py") if rest else (path / "__init__.py",)
        return next((file for file in files if file.is_file()), None)

    def _imported(self, path: Path) -> tuple[str, ...]:
        """Returns the modules of `PACKAGES` that a file imports."""
        if path not in self._imports:
            self._imports[path] = tuple(dict.fromkeys(self._resolved(path)))
        return self._imports[path]

    def _resolved(self, path: Path) -> Iterator[str]:
        for module, names in self._source(path).imports:
            if module.partition(".")[0] in self.roots:
                inside = [f"{module}.{name}" for name in names]
                modules = [name for name in inside if self.file_of(name) is not None]
                yield from modules
                if not names or len(modules) < len(inside):
                    yield module

    def _source(self, path: Path) -> Source:
        if path not in self._sources:
            self._sources[path] = read_source(path, self._module_of(path))
        return self._sources[path]

    def _module_of(self, path: Path) -> str:
        """Returns the name of the package that a file's relative imports start from."""
        for package, root in self.roots.items():
            if path.is_relative_to(root):
                return ".".join([package, *path.relative_to(root).parent.parts])
        raise AssertionError(f"{path} is below none of {self.roots}")


def is_ignored(module: str) -> bool:
    """Returns True for a module of `IGNORED`, or below one."""
    return any(module == name or module.startswith(f"{name}.") for name in IGNORED)


def read_source(path: Path, package: str) -> Source:
    """Parses one file. `package` is the package that its relative imports start from."""
    tree = ast.parse(path.read_bytes(), str(path))
    _drop_docstrings(tree)
    # A package that imports its names on first use lists their modules for type checkers.
    imports = tuple(imports_of(tree, package, for_types=path.name == "__init__.py"))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    named = (path.parent / text for text in sorted(strings) if _is_file_name(text))
    resources = tuple(file for file in named if file.is_file())
    return Source(sha256_bytes(canonical(tree).encode()), imports, resources)


def canonical(node: ast.AST) -> str:
    """Returns the code of a syntax tree as text that is equal under Python 3.11 to 3.13: node types, and fields that
    are not empty.
    """
    return json.dumps(_plain(node), separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, ast.Constant):
        kind = type(value.value).__name__
        return ["Constant", kind, value.value if kind == "str" else repr(value.value)]
    if isinstance(value, ast.JoinedStr):
        return ["JoinedStr", [_plain(part) for part in _joined(value)]]
    if isinstance(value, ast.AST):
        fields = ((name, getattr(value, name, None)) for name in value._fields if name not in _DROPPED)
        return [type(value).__name__, {name: _plain(one) for name, one in fields if one is not None and one != []}]
    if isinstance(value, list):
        return [_plain(one) for one in value]
    assert value is None or isinstance(value, str | int), value
    return value


def _joined(value: ast.JoinedStr) -> list[ast.expr]:
    """Returns the parts of an f-string with neighbouring texts joined: Python 3.12 splits them elsewhere than 3.11."""
    parts: list[ast.expr] = []
    for part in value.values:
        before = parts[-1] if parts else None
        if isinstance(part, ast.Constant) and isinstance(before, ast.Constant):
            parts[-1] = ast.Constant(str(before.value) + str(part.value))
        else:
            parts.append(part)
    return [part for part in parts if not (isinstance(part, ast.Constant) and part.value == "")]


def _drop_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]


def imports_of(tree: ast.AST, package: str, for_types: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields each imported module with the names taken from it, none for `import module`.

    Args:
        for_types: also yields imports under `if TYPE_CHECKING:`.
    """
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test) and not for_types:
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            yield module, tuple(alias.name for alias in node.names)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _is_file_name(text: str) -> bool:
    return 3 < len(text) < 100 and "." in text and "\n" not in text and not text.startswith((".", "/"))


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {package} is not installed; run from the project's folder, or pip install mgpt")
    return Path(next(iter(spec.submodule_search_locations))).absolute()
