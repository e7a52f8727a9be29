"""Batches made ahead: same order, same errors, nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from medloom.data.prefetch import prefetch


def alive() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "medloom-prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 2, 8])
def test_order_is_that_of_the_items(depth: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(prefetch(make, range(30), depth)) == [i * i for i in range(30)]
    assert not alive()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_after_the_batches_before_it(depth: int) -> None:
    def make(item: int) -> int:
        if item == 3:
            raise ValueError("third")
        return item

    batches = prefetch(make, range(10), depth)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(batches)
    assert not alive()


def test_an_error_of_the_items_is_carried_too() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise KeyError("items")

    with pytest.raises(KeyError):
        list(prefetch(lambda item: item, items()))


def test_leaving_early_stops_the_thread() -> None:
    made = []
    batches = prefetch(lambda item: made.append(item) or item, range(1000), depth=2)
    for batch in batches:
        if batch == 5:
            break
    batches.close()  # type: ignore[attr-defined]
    assert not alive()
    assert len(made) <= 10


def test_no_more_than_depth_wait() -> None:
    made = []
    batches = prefetch(lambda item: made.append(item) or item, range(100), depth=3)
    next(batches)
    time.sleep(0.2)
    assert len(made) <= 1 + 3 + 1
    batches.close()  # type: ignore[attr-defined]


def test_the_next_batch_is_made_while_this_one_is_used() -> None:
    second = threading.Event()

    def make(item: int) -> int:
        if item == 1:
            second.set()
        return item

    batches = prefetch(make, range(3))
    assert next(batches) == 0
    assert second.wait(timeout=30)  # nobody has asked for it yet
    assert list(batches) == [1, 2]
