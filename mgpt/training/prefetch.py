"""Runs an iterator ahead of its reader in a thread, so that making an item does not hold up a training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def ahead(make: Callable[[], Iterator[Item]], depth: int) -> Iterator[Item]:
    """The items of `make()`, which runs in a thread of its own from now on and stays at most `depth` items ahead.

    An exception of the thread is raised where its item would have come. The thread ends with the process, or when the items end.
    """
    items: queue.Queue[object] = queue.Queue(depth)
    threading.Thread(target=_fill, args=(make, items), daemon=True).start()
    return _drain(items)


def primed(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, once the first is there: the wait for it is start-up, and none of a step's time."""
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
