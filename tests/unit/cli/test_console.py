"""Tables and text are at most 100 columns wide; progress has a plain form."""

from __future__ import annotations

import pytest

from mgpt.cli.console import WIDTH, print_table, print_wrapped, progress, status


def test_table_is_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "note", "count"], [["a" * 40, "many words " * 20, 3], ["b", "[bold]kept[/bold]", 4]])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= WIDTH
    assert "a" * 40 in printed
    assert "[bold]kept[/bold]" in printed


def test_long_lines_are_wrapped_with_their_indent(capsys: pytest.CaptureFixture[str]) -> None:
    print_wrapped("short\n  " + "word " * 60 + "\n" + "x" * 200)
    first, *wrapped, long = capsys.readouterr().out.splitlines()
    assert (first, long) == ("short", "x" * 200)
    assert len(wrapped) > 2
    assert all(line.startswith("  word") and len(line) <= WIDTH for line in wrapped)


def test_progress_without_a_terminal_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("predicting", "answers") as report:
        for done in (1, 2, 3):
            report(done, 3)
    with status("checking") as show:
        show("store")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["predicting: 3 of 3 answers", "checking", "checking: store"]
    assert not captured.out
