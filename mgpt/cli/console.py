"""Terminal output: tables, wrapped text and progress, at most 100 columns wide."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

WIDTH = 100  # columns
_REPORT_SECONDS = 10.0  # between two progress lines where the output is not a terminal


def console(*, stderr: bool = False) -> Console:
    """Returns a console of at most `WIDTH` columns; a pipe or file gets exactly so many."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    found.width = min(found.width, WIDTH) if found.is_terminal else WIDTH
    return found


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; the first column is never wrapped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(str, row))
    out = console()
    with out.capture() as capture:
        out.print(table, markup=False)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_wrapped(text: str) -> None:
    """Prints text, with longer lines wrapped at words and their indent kept."""
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped = textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        print("\n".join(wrapped) if len(line) > WIDTH else line)


@contextmanager
def progress(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that moves a progress bar on stderr.

    Prints a line every few seconds where stderr is not a terminal.
    """
    out = console(stderr=True)
    if not out.is_terminal:
        yield _line_reporter(description, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=out, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def status(description: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows the current step next to a spinner on stderr.

    Prints plain lines where stderr is not a terminal.
    """
    out = console(stderr=True)
    if not out.is_terminal:
        print(description, file=sys.stderr, flush=True)
        yield lambda line: print(f"{description}: {line}", file=sys.stderr, flush=True)
        return
    with out.status(description) as spinner:
        yield lambda line: spinner.update(f"{description}: {line}")


def _line_reporter(description: str, unit: str) -> Callable[[int, int], None]:
    reported = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal reported
        if done == total or time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{description}: {done} of {total} {unit}", file=sys.stderr, flush=True)

    return report
