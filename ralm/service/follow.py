"""Following the registry: when another version becomes the champion, it is put into service."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from ralm.cli import one_line
from ralm.service.pair import champion_target, describe, load_pair
from ralm.service.state import Service

MAX_WAIT_S: Final = 3600.0
logger = logging.getLogger(__name__)


class Follower:
    """A thread that looks at the alias from time to time.

    A new champion is opened and asked a question while the old one goes on answering; where that fails, the old one
    stays, and the new one is tried again after a while that doubles each time.

    Args:
        recipe: whose champion.
        service: what it is put into; has a pair of the registry already.
        every_s: seconds between two looks.
    """

    def __init__(self, recipe: str, service: Service, *, every_s: float) -> None:
        self._recipe, self._service, self._every_s = recipe, service, every_s
        self._refused, self._wait_s, self._again_at = "", 0.0, 0.0
        self._trouble = ""
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name="follow-champion", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self.thread.start()

    def stop(self) -> None:
        """Look no more; what is being loaded is left."""
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.wait(self._every_s):
            self.look()

    def look(self) -> None:
        """Take the champion into service if it is another version than the one there."""
        from ralm import serving

        assert self._service.pair is not None
        now = self._service.pair.target.version
        try:
            champion = serving.find_version(self._recipe)
        except Exception as error:
            self._tell(f"the registry cannot be asked: {one_line(error)}")
            return
        if not champion:
            self._tell("there is no champion in the registry any more")
            return
        self._tell("")
        if champion == now or (champion == self._refused and time.monotonic() < self._again_at):
            return
        try:
            pair = load_pair(champion_target(self._recipe), self._service.pair)
            if not self._ended.is_set():
                self._service.take(pair)
        except Exception as error:
            self._refuse(champion, now, error)
            return
        self._refused = ""
        logger.info("in service: %s; was version %s", describe(pair), now)

    def _refuse(self, champion: str, now: str, error: Exception) -> None:
        self._wait_s = min(2 * self._wait_s, MAX_WAIT_S) if champion == self._refused else 2 * self._every_s
        self._refused, self._again_at = champion, time.monotonic() + self._wait_s
        logger.error(
            "champion %s cannot be served, version %s goes on; tried again in %.0f s: %s",
            champion,
            now,
            self._wait_s,
            one_line(error),
        )
        logger.debug("traceback", exc_info=error)

    def _tell(self, trouble: str) -> None:
        """Log a trouble once, and its end."""
        if trouble != self._trouble:
            now = self._service.pair.target.version if self._service.pair else ""
            if trouble:
                logger.warning("version %s goes on: %s", now, trouble)
            else:
                logger.info("the registry is as expected again")
        self._trouble = trouble
