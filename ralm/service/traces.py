"""Traces of requests: noted when the answer is known, written to MLflow by a thread of their own.

Nobody waits for MLflow here. Where it is slow or away, traces are dropped and counted, and answers go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ralm import tracking
from ralm.errors import ConfigError
from ralm.service.batching import Done

TraceSetting = Literal["auto", "on", "off"]
MAX_WAITING: Final = 1000
RETRY_AFTER_S: Final = 30.0
"""How long traces are dropped after MLflow failed."""
EXPORTER: Final = "mlflow.tracing.export.mlflow_v3"
"""MLflow's exporter raises nothing; what fails is in its log only."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TracedRequest:
    """A request that was answered, or failed."""

    questions: Sequence[str]
    k: int
    answers: Sequence[Done]
    """One for each question; empty where the request failed."""
    facts: dict[str, str] = field(default_factory=dict)
    """Recipe, version, source and fingerprints of the pair."""
    model_id: str = ""
    """MLflow's logged model; empty where there is none."""
    started_ns: int
    """Since 1970."""
    ended_ns: int
    error: str = ""
    """What went wrong; empty where nothing did."""


def are_wanted(setting: TraceSetting) -> bool:
    """Whether to write traces; `auto`: where `MLFLOW_TRACKING_URI` names a server or database.

    Raises:
        ConfigError: they are asked for, but tracking is off.
    """
    if setting == "on" and not tracking.is_enabled():
        raise ConfigError("trace: on, but RALM_TRACKING is off")
    return setting == "on" or (
        setting == "auto" and tracking.is_enabled() and bool(os.environ.get("MLFLOW_TRACKING_URI"))
    )


class Traces:
    """A thread that writes traces, and the bounded queue before it.

    Args:
        is_on: False: nothing is noted, and MLflow is not touched.
    """

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self.num_written = self.num_dropped = 0
        self._queue: queue.Queue[TracedRequest | None] = queue.Queue(MAX_WAITING)
        self.thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._failures = _Failures()
        self._dropping_until = 0.0
        self._is_connected = False
        if is_on:
            os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")  # this thread is asynchronous enough
            self.thread.start()

    def put(self, traced: TracedRequest) -> None:
        """Note a request."""
        if self.is_on:
            try:
                self._queue.put_nowait(traced)
            except queue.Full:
                self.num_dropped += 1

    def stop(self, timeout_s: float) -> None:
        """Write what waits, as far as there is time, and end the thread."""
        if not self.thread.is_alive():
            return
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self.thread.join(max(0.0, deadline - time.monotonic()))
        dropped = self.num_dropped + self._queue.qsize()
        logger.info("traces: %d written, %d dropped", self.num_written, dropped)

    def _work(self) -> None:
        exporter = logging.getLogger(EXPORTER)
        exporter.addFilter(self._failures)
        self._attempt(None)
        while (traced := self._queue.get()) is not None:
            if time.monotonic() < self._dropping_until:
                self.num_dropped += 1
            else:
                self._attempt(traced)
        exporter.removeFilter(self._failures)

    def _attempt(self, traced: TracedRequest | None) -> None:
        """Write a trace, or only connect; where it fails, go on later."""
        try:
            if not self._is_connected:
                tracking.connect()
                self._is_connected = True
                logger.info("traces go to %s", destination())
            if traced is not None:
                from ralm.serving import record_trace

                record_trace(traced)
            reason = self._failures.take()
        except Exception as error:
            reason = tracking.first_line(error)
        if not reason:
            self.num_written += traced is not None
            return
        self.num_dropped += traced is not None
        self._dropping_until = time.monotonic() + RETRY_AFTER_S
        logger.warning("traces: MLflow fails, the next %.0f s have none: %s", RETRY_AFTER_S, reason)


class _Failures(logging.Filter):
    """Keeps the exporter's complaints, and keeps them out of the log."""

    def __init__(self) -> None:
        super().__init__()
        self._first = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self._first = self._first or tracking.without_password(record.getMessage().partition("\n")[0])
        return False

    def take(self) -> str:
        """The first complaint since the last call."""
        first, self._first = self._first, ""
        return first


def destination() -> str:
    """Where traces go, for people."""
    uri = tracking.without_password(tracking.tracking_uri())
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return f"{uri}, experiment {number or os.environ.get('MLFLOW_EXPERIMENT_NAME') or tracking.EXPERIMENT}"
