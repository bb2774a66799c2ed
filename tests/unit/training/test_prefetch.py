import threading

import pytest

from mgpt.training.prefetch import prefetch, wait_for_first


def test_items_in_order_and_bounded():
    made = []

    def make():
        for number in range(20):
            made.append(number)
            yield number

    items = prefetch(make, 2)
    assert next(items) == 0
    assert len(made) <= 5  # one read, two queued, one waiting for the queue, one being made
    assert list(items) == list(range(1, 20))


def test_wait_for_first_returns_with_first_item():
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


def test_thread_error_is_raised_in_place_of_item():
    def make():
        yield 1
        raise ValueError("no second")

    items = wait_for_first(prefetch(make, 2))
    assert next(items) == 1
    with pytest.raises(ValueError, match="no second"):
        next(items)
