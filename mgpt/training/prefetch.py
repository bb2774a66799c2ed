"""Runs an iterator in a background thread, so that a training step does not wait for the making of its items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def prefetch(make: Callable[[], Iterator[Item]], depth: int) -> Iterator[Item]:
    """Returns the items of `make()`, which starts in a thread at once and runs at most `depth` items ahead.

    An exception in the thread is raised in place of its item. The thread ends with the items or with the process.
    """
    items: queue.Queue[object] = queue.Queue(depth)
    threading.Thread(target=_fill, args=(make, items), daemon=True).start()
    return _drain(items)


def wait_for_first(items: Iterator[Item]) -> Iterator[Item]:
    """Returns the same items once the first is available, so that this wait is not part of a step."""
    return chain(list(islice(items, 1)), items)


def _fill(make: Callable[[], Iterator[Item]], items: queue.Queue[object]) -> None:
    try:
        for item in make():
            items.put(item)
    except BaseException as error:
        items.put(_Failure(error))
    else:
        items.put(_END)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _drain(items: queue.Queue[object]) -> Iterator[Item]:
    while (item := items.get()) is not _END:
        if isinstance(item, _Failure):
            raise item.error
        yield item  # type: ignore[misc]
