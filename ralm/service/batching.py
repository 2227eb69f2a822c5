"""Questions that wait are answered together: one thread works for all requests, since a model runs one thing at a time.

Nobody waits for others to come: the thread takes what is there as soon as it is free.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from ralm.answer import Answer, FoundPassage
from ralm.errors import RalmError

SMOOTHING = 0.2
"""Weight of the newest batch in the mean time of a question."""
logger = logging.getLogger(__name__)


class QueueFullError(RalmError):
    """More questions wait than are allowed to.

    Args:
        retry_after_s: when it may be worth another try.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many questions wait; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class StoppedError(RalmError):
    """The worker has ended, or was told to."""


class CanAnswer(Protocol):
    """The two halves of an answer, as `ralm.answer.Answerer` has them."""

    def search(self, questions: Sequence[str], *, k: int) -> list[list[FoundPassage]]:
        """The passages for each question."""
        ...

    def read(self, questions: Sequence[str], found: Sequence[Sequence[FoundPassage]]) -> list[Answer]:
        """What the reader makes of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Done:
    """An answer, and when its batch was worked on: nanoseconds since 1970."""

    answer: Answer
    started_ns: int
    found_ns: int
    ended_ns: int
    num_batch: int
    """Questions in the batch."""


@dataclass(frozen=True)
class _Job:
    answerer: CanAnswer
    question: str
    k: int
    future: Future[Done] = field(default_factory=Future)


class Batcher:
    """A thread that answers, and the bounded queue before it.

    Questions are answered together if they go to the same answerer and ask for as many passages. The longest-waiting
    question is always in the next batch.

    Args:
        max_batch: questions answered together.
        max_waiting: questions that may wait.
    """

    def __init__(self, *, max_batch: int, max_waiting: int) -> None:
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.num_batches = 0
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._question_s = 0.0
        self.thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self.thread.start()

    def submit(self, answerer: CanAnswer, questions: Sequence[str], *, k: int) -> list[Future[Done]]:
        """Line up the questions of a request: all of them, or none.

        Args:
            answerer: who answers, also if another one is in service by then.
            questions: texts.
            k: passages for each.

        Returns:
            One future for each. Cancelled ones are not answered.

        Raises:
            QueueFullError: there is no room; an empty queue takes a request of any size.
            StoppedError: the worker was told to stop.
        """
        jobs = [_Job(answerer, question, k) for question in questions]
        with self._changed:
            if self._is_stopping:
                raise StoppedError("the service is stopping")
            if self._waiting and len(self._waiting) + len(jobs) > self.max_waiting:
                raise QueueFullError(max(1, math.ceil(len(self._waiting) * self._question_s)))
            self._waiting.extend(jobs)
            self._changed.notify()
        return [job.future for job in jobs]

    def stop(self, timeout_s: float) -> bool:
        """Answer what waits and end the thread; False if that takes longer."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self.thread.join(timeout_s)
        return not self.thread.is_alive()

    def _work(self) -> None:
        while jobs := self._next_batch():
            started_at = time.monotonic()
            self._answer(jobs)
            spent_s = (time.monotonic() - started_at) / len(jobs)
            self._question_s += (spent_s - self._question_s) * (SMOOTHING if self.num_batches else 1.0)
            self.num_batches += 1
            del jobs  # a batch holds its answerer, which may no longer be in service

    def _next_batch(self) -> list[_Job]:
        """Wait for a batch; empty when all is done and the thread is to end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                if not self._waiting:
                    return []
                first = self._waiting[0]
                jobs: list[_Job] = []
                others: deque[_Job] = deque()
                for job in self._waiting:
                    is_alike = job.answerer is first.answerer and job.k == first.k
                    (jobs if is_alike and len(jobs) < self.max_batch else others).append(job)
                self._waiting = others
            wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if wanted:
                return wanted

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Answer a batch; where that fails, each question alone, so that none suffers from another one."""
        try:
            answers = answer_together(jobs[0].answerer, [job.question for job in jobs], jobs[0].k)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            logger.warning("a batch of %d questions failed; each is tried alone: %s", len(jobs), type(error).__name__)
            for job in jobs:
                self._answer([job])
            return
        for job, done in zip(jobs, answers, strict=True):
            job.future.set_result(done)


def answer_together(answerer: CanAnswer, questions: Sequence[str], k: int) -> list[Done]:
    """Answer questions in one go, and note when."""
    started_ns = time.time_ns()
    found = answerer.search(questions, k=k)
    found_ns = time.time_ns()
    answers = answerer.read(questions, found)
    ended_ns = time.time_ns()
    return [
        Done(answer=answer, started_ns=started_ns, found_ns=found_ns, ended_ns=ended_ns, num_batch=len(questions))
        for answer in answers
    ]
