"""Threads ahead and behind: order, errors, and that no more is done than was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ralm.overlap import Behind, ahead


def test_results_come_in_order_and_the_thread_is_one_ahead() -> None:
    started: list[int] = []
    second = threading.Event()

    def note(item: int) -> int:
        started.append(item)
        if item == 2:
            second.set()
        return 10 * item

    results = ahead(note, iter(range(1, 6)))
    assert next(results) == 10
    assert second.wait(10)
    assert list(results) == [20, 30, 40, 50]
    assert started == [1, 2, 3, 4, 5]


def test_an_error_of_the_thread_is_raised_where_its_result_is_taken() -> None:
    results = ahead(lambda item: 6 // item, [3, 2, 0, 1])
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_is_left_is_not_done_when_the_results_are_no_longer_wanted() -> None:
    started: list[int] = []
    results = ahead(started.append, range(100))
    next(results)
    results.close()
    assert len(started) <= 4


def fail_behind(*functions: Callable[[], object], error: Exception | None = None) -> None:
    with Behind() as behind:
        for function in functions:
            behind.run(function)
        if error is not None:
            raise error


def test_errors_behind_are_raised_with_the_next_or_at_the_end() -> None:
    with pytest.raises(ZeroDivisionError):
        fail_behind(lambda: 1 // 0, lambda: None)
    with pytest.raises(ZeroDivisionError):
        fail_behind(lambda: 1 // 0)
    with pytest.raises(KeyError):
        fail_behind(lambda: 1 // 0, error=KeyError("the first error wins"))
