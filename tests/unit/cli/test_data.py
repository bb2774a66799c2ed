"""`mgpt data`."""

from __future__ import annotations

import re

import pytest

from mgpt.cli.console import WIDTH
from mgpt.cli.main import main
from mgpt.data.datasets import READERS
from tests.fixtures.datasets import PUBLISHED


def test_datasets_lists_every_reader(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "datasets"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    for name in READERS:
        assert re.search(rf"^{re.escape(name)} ", printed, re.MULTILINE), name
    untested = {line.split()[0] for line in printed.splitlines() if re.search(r"\buntested\b", line)}
    assert not untested & PUBLISHED
    assert re.search(r"^refcoco .* tested .* dead \+ 2 mirrors", printed, re.MULTILINE)


def test_dataset_shows_its_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "datasets", "refcoco"]) == 0
    printed = capsys.readouterr().out
    for key in ("formats", "licence", "links", "citation"):
        assert re.search(rf"^ *{key}  \S", printed, re.MULTILINE), key


def test_unknown_dataset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "datasets", "nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_invalid_data_is_refused(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "validate", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
