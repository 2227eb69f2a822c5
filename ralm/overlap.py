"""Work of other threads before and behind that of the main one, so that a device need not wait for either.

Useful for what leaves Python's lock alone: tokenizers, numpy on large arrays, files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_END: Any = object()


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """`map` in a thread that works one result ahead; it also reads the items.

    Close it where it may be left early: then only the item at hand is finished.

    Example:
        >>> list(ahead(abs, [-1, -2, -3]))
        [1, 2, 3]
    """
    remaining = iter(items)

    def take() -> Any:
        item: Any = next(remaining, _END)
        return _END if item is _END else function(item)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        waiting: deque[Future[Any]] = deque(pool.submit(take) for _ in range(2))
        while (result := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(take))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Behind:
    """Does one thing at a time in a thread, in the order given; use in a `with` block, which ends when all is done.

    Example:
        >>> done = []
        >>> with Behind() as behind:
        ...     behind.run(done.append, 1)
        ...     behind.run(done.append, 2)
        >>> done
        [1, 2]
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="behind")
        self._last: Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def run(self, function: Callable[..., Any], *values: Any) -> None:
        """Wait for what was given before, then begin with this; an error of what was before is raised here."""
        self._finish()
        self._last = self._pool.submit(function, *values)

    def _finish(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
