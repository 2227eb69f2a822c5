"""Ordered map over worker processes with a bounded number of items under way."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ralm.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
INLINE_ITEMS = 4
"""A short input is done in this process: starting others costs more."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ordered(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map`, in other processes; results come in the order of the items, so they do not depend on `workers`.

    Args:
        function: a module-level function (it is sent to the processes by name).
        items: read only as fast as results are taken.
        workers: processes; 1 does everything in this one.

    Raises:
        DataError: a process died.
    """
    items = iter(items)
    if workers <= 1:
        yield from map(function, items)
        return
    first: list[Item] = []
    for item in items:
        first.append(item)
        if len(first) > INLINE_ITEMS:
            break
    if len(first) <= INLINE_ITEMS:
        yield from map(function, first)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: deque[Future[Result]] = deque()

        def start(some: Iterable[Item]) -> None:
            with without_main_module():
                waiting.extend(pool.submit(function, item) for item in some)

        start(first)
        first.clear()
        while waiting:
            start(itertools.islice(items, max(0, 2 * workers - len(waiting))))
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError("a worker process died, perhaps for lack of memory; try fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Processes that are started inside do not run the program's main file again.

    They need none of it; a script that calls a stage without `if __name__ == "__main__"` would call it in each of
    them again, and wait for itself.
    """
    names = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: names[name] for name in ("__file__", "__spec__") if name in names}
    names.pop("__file__", None)
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(hidden)
