"""Items that are made ahead of their reader."""

import threading

import pytest

from mgpt.training.prefetch import prefetch, wait_for_first


def test_items_come_in_order_and_no_more_than_depth_ahead():
    made = []

    def make():
        for number in range(20):
            made.append(number)
            yield number

    items = prefetch(make, 2)
    assert next(items) == 0
    assert len(made) <= 5  # read, two that wait, one at the door, one in the making
    assert list(items) == list(range(1, 20))


def test_primed_returns_when_the_first_item_is_there():
    first = threading.Event()

    def make():
        first.wait(30)
        yield "first"
        yield "second"

    items = prefetch(make, 2)
    threading.Timer(0.05, first.set).start()
    begun = wait_for_first(items)
    assert first.is_set()
    assert list(begun) == ["first", "second"]
    assert list(wait_for_first(iter(()))) == []


def test_what_the_thread_raises_comes_where_its_item_would():
    def make():
        yield 1
        raise ValueError("no second")

    items = wait_for_first(prefetch(make, 2))
    assert next(items) == 1
    with pytest.raises(ValueError, match="no second"):
        next(items)
