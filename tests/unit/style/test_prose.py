"""Rules for words and documents."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import yaml

from tests.fixtures.source_code import ROOT, files

# Words of an earlier private vocabulary, in all their forms and inside identifiers (CONTRIBUTING.md names the
# replacements).
BANNED = re.compile(
    r"(?<![a-z])(mend(s|ed|ing)?|told|anew|judg(e|es|ed|ing|ement|ements|ment|ments)|pictur(e|es|ed|ing))(?![a-z])",
    re.IGNORECASE,
)
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Data, whose text is fixed: prompts, vocabularies, generated and recorded text, and tests that quote them.
DATA = (
    "mgpt/data/synthetic/*",
    "mgpt/data/tasks.yaml",
    "mgpt/data/vocabularies/*",
    "tools/toy_backbones/corpus.py",
    "tests/fixtures/golden*",
    "tests/fixtures/reference.py",
    "tests/unit/data/test_tasks.py",
    "tests/unit/data/synthetic/*",
    "tests/unit/style/test_prose.py",
)
# Quotations of prompts and of published text elsewhere.
QUOTED = (
    "how many {} are in the picture?",
    "how many dogs are in the picture?",
    "Describe this picture",
    "describe this picture",
    "this picture",
)
LONGEST_LINE = 200


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def documents() -> list[Path]:
    return [path for path in files(".md") if path.parent == ROOT or path.is_relative_to(ROOT / "docs")]


def test_words_of_the_earlier_vocabulary_are_gone() -> None:
    found = []
    for path in files(".py", ".md", ".yaml", ".toml", ".jinja"):
        if any(fnmatch(relative(path), pattern) for pattern in DATA):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for quotation in QUOTED:
                line = line.replace(quotation, "")
            if match := BANNED.search(CAMEL.sub("_", line)):
                found.append(f"{relative(path)}:{number} {match[0]}")
    assert not found, f"{len(found)} found:\n" + "\n".join(found)


def test_lines_of_documents_are_short() -> None:
    """Tables are left out: Markdown knows no line breaks in them."""
    found = [
        f"{relative(path)}:{number} {len(line)} characters"
        for path in documents()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LONGEST_LINE and not line.lstrip().startswith("|")
    ]
    assert not found, "\n".join(found)


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in documents() if path.is_relative_to(ROOT / "docs")}
    assert pages == set(_pages(yaml.safe_load(config)["nav"]))


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def _pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    below = entry.values() if isinstance(entry, dict) else entry
    return [page for one in below for page in _pages(one)]  # type: ignore[attr-defined]
