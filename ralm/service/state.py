"""What is in service now: the pair, whether it works, and how a request gets its answers from it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ralm.service.batching import Batcher, Done, QueueFullError
from ralm.service.pair import ServedPair
from ralm.service.protocol import Asked

WARM_UP = "which river is the longest one"
"""Asked before a pair goes into service, and to find out whether it still works."""
PROBE_EVERY_S = 5.0
logger = logging.getLogger(__name__)


class NotReadyError(Exception):
    """No pair is in service, or it does not work at the moment."""


@dataclass(frozen=True)
class Answered:
    """The answers to a request."""

    pair: ServedPair
    k: int
    answers: list[Done]


class Service:
    """The pair in service.

    A request is answered as a whole by the pair that was in service when it came.

    Args:
        batcher: whose thread answers.
        k: passages for a question where the request does not say; 0: as many as the model was trained with.
    """

    def __init__(self, batcher: Batcher, *, k: int = 0) -> None:
        self.batcher = batcher
        self.pair: ServedPair | None = None
        self.num_answered = 0
        self._failed: ServedPair | None = None
        self._k = k
        self._probe: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """`loading`, `ready` or `failed`."""
        if self.pair is None:
            return "loading"
        return "failed" if self.pair is self._failed else "ready"

    def take(self, pair: ServedPair) -> None:
        """Put a pair into service once it has answered a question. To be called from another thread than the server's.

        Raises:
            Exception: whatever keeps it from answering; what was in service before stays.
        """
        while True:
            try:
                (future,) = self.batcher.submit(pair.answerer, [WARM_UP], k=self.k_of(pair))
                break
            except QueueFullError as error:
                time.sleep(error.retry_after_s)
        future.result()
        self.pair = pair

    def k_of(self, pair: ServedPair, asked: int = 0) -> int:
        """Passages for a question."""
        return asked or self._k or pair.answerer.num_passages

    async def answer(self, asked: Asked, is_given_up: Callable[[], Awaitable[None]]) -> Answered | None:
        """Answer a request.

        Args:
            asked: the request.
            is_given_up: returns when nobody waits for the answers any more.

        Returns:
            None if nobody waits any more; what had not begun by then is not done.

        Raises:
            NotReadyError: there is no pair that works.
            QueueFullError: too many questions wait.
            Exception: a question could not be answered.
        """
        pair = self.pair
        if pair is None or pair is self._failed:
            raise NotReadyError(self.state)
        k = self.k_of(pair, asked.k)
        futures = self.batcher.submit(pair.answerer, asked.questions, k=k)
        answers = asyncio.gather(*map(asyncio.wrap_future, futures))
        given_up = asyncio.ensure_future(is_given_up())
        either: set[asyncio.Future[Any]] = {answers, given_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                return None
            answered = Answered(pair, k, answers.result())
            self.num_answered += len(answered.answers)
            return answered
        except Exception:
            self._look_after(pair)
            raise
        finally:
            given_up.cancel()
            answers.cancel()
            for future in futures:
                future.cancel()

    def _look_after(self, pair: ServedPair) -> None:
        """Find out whether it was the question or the pair."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._until_it_works(pair))

    async def _until_it_works(self, pair: ServedPair) -> None:
        while pair is self.pair:
            try:
                (future,) = self.batcher.submit(pair.answerer, [WARM_UP], k=self.k_of(pair))
                await asyncio.wrap_future(future)
            except QueueFullError:
                pass
            except Exception:
                if self._failed is not pair:
                    logger.exception("the pair does not answer any more; asked again every %.0f s", PROBE_EVERY_S)
                self._failed = pair
            else:
                if self._failed is pair:
                    self._failed = None
                    logger.info("the pair answers again")
                return
            await asyncio.sleep(PROBE_EVERY_S)
