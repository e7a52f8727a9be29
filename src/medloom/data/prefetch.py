"""The next batch is made while the model works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Batch = TypeVar("Batch")


def prefetch(make: Callable[[Item], Batch], items: Iterable[Item], depth: int = 2) -> Generator[Batch, None, None]:
    """Yield ``make(item)`` for every item, in order, made ahead in one background thread.

    One thread, so the order of all side effects is that of the items. What ``make`` or ``items`` raises is raised
    here, after the batches before it. Closing the iterator (also by leaving the loop early) stops the thread before the
    next batch and waits for it.

    Args:
        make: one item to one batch; must not need the caller's thread.
        items: e.g. step numbers.
        depth: finished batches that may wait; 0 makes each when it is asked for, without a thread.
    """
    if depth <= 0:
        yield from map(make, items)
        return
    ready: queue.Queue[tuple[str, object]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set() or not put("batch", make(item)):
                    return
            put("end", None)
        except BaseException as problem:  # noqa: BLE001 - carried to the caller's thread, not swallowed
            put("problem", problem)

    thread = threading.Thread(target=work, name="medloom-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "problem":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
