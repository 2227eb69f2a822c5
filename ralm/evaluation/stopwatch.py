"""Wall time by kind of work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the time spent on each kind of work."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        started_at = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started_at

    def per_question_ms(self, num_questions: int) -> dict[str, float]:
        """Milliseconds for each question, `NAME_ms`."""
        return {f"{name}_ms": round(1000 * value / num_questions, 3) for name, value in self.seconds.items()}
