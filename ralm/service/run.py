"""The life of the service: listen, load, answer, and end well."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from ralm.cli import EXIT_INTERRUPTED
from ralm.errors import ConfigError
from ralm.service.app import build_app
from ralm.service.batching import Batcher
from ralm.service.follow import Follower
from ralm.service.pair import Target, describe, load_pair
from ralm.service.protocol import Limits
from ralm.service.state import Service
from ralm.service.traces import Traces

END_S = 5.0
"""For what is left after the last answer: the thread that answers, and the traces."""
KEEP_ALIVE_S = 75
"""Longer than load balancers keep a connection, so that it is they who close it."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0: any that is free."""
    k: int = 0
    """Passages for a question where a request does not say; 0: as many as the model was trained with."""
    limits: Limits = field(default_factory=Limits)
    max_batch: int = 16
    """Questions answered together."""
    max_waiting: int = 256
    """Questions that may wait; more are refused with 503."""
    follow_champion_s: float = 0.0
    """Seconds between two looks at the champion; 0: stay with the first one."""
    stop_within_s: float = 25.0
    """For the requests that are being answered when the service is told to stop."""
    traces: bool = False
    """Whether to write traces to MLflow."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port: expected 0 to 65535, found {self.port}")
        if not 0 <= self.k <= self.limits.max_k:
            raise ConfigError(f"k: expected 0 to max_k ({self.limits.max_k}), found {self.k}")
        for name in ("max_batch", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("follow_champion_s", "stop_within_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected 0 or more seconds, found {getattr(self, name)}")


@dataclass(frozen=True)
class Served:
    """What the service did."""

    questions: int
    elapsed_s: float


def serve(target: Target, config: ServiceConfig) -> Served:
    """Serve a pair until SIGTERM or Ctrl-C, or until it turns out that it cannot be loaded.

    Args:
        target: the pair.
        config: how.

    Raises:
        ConfigError: the address cannot be listened at.
        ArtifactError: the pair cannot be opened.
        KeyboardInterrupt: after Ctrl-C, when all is tidied up.
    """
    started_at = time.monotonic()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # what asks MLflow here comes back by itself
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with contextlib.ExitStack() as ending:
        listener = ending.enter_context(_listen(config.host, config.port))
        traces = Traces(is_on=config.traces)
        batcher = Batcher(max_batch=config.max_batch, max_waiting=config.max_waiting)
        service = Service(batcher, k=config.k)
        follower = Follower(target.recipe, service, every_s=config.follow_champion_s)
        loading = _Loading(target, service, follower if config.follow_champion_s else None)
        server = _Server(build_app(service, config.limits, traces), config)
        ending.callback(_leave_at_exit, server, [loading.thread, batcher.thread, follower.thread, traces.thread])
        ending.callback(traces.stop, END_S)
        ending.callback(batcher.stop, END_S)
        ending.callback(follower.stop)
        asyncio.run(server.run_until_stopped(listener, loading))
    return Served(service.num_answered, round(time.monotonic() - started_at, 1))


def _leave_at_exit(server: _Server, threads: Sequence[threading.Thread]) -> None:
    """See to it that the process ends although threads are busy still: loading a model, or in the middle of a batch.

    Python would end them inside of native code, which aborts the process now and then.
    """

    def leave() -> None:
        if any(thread.is_alive() for thread in threads):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED if server.is_interrupted else 0)

    if any(thread.is_alive() for thread in threads):
        atexit.register(leave)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that connections are taken from as soon as the server runs.

    Raises:
        ConfigError: no such host, the port is taken, or it may not be used.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        is_of_names = isinstance(error, socket.gaierror)
        reason = (error.strerror or str(error)) if is_of_names else os.strerror(error.errno or 0)
        raise ConfigError(f"host and port: cannot listen at {host}:{port}: {reason.lower()}") from error


class _Loading:
    """Opens the pair in a thread, while the server says already that it is not ready yet."""

    def __init__(self, target: Target, service: Service, follower: Follower | None) -> None:
        self._target, self._service, self._follower = target, service, follower
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, name="load", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def _work(self) -> None:
        try:
            pair = load_pair(self._target)
            self._service.take(pair)
            logger.info("ready: %s", describe(pair))
            if self._follower is not None:
                self._follower.start()
        except BaseException as error:
            self.error = error
        self.ended.set()


class _Server(uvicorn.Server):
    """Uvicorn with our signals: SIGTERM ends well, Ctrl-C too but counts as interrupted, a second one ends at once."""

    def __init__(self, app: Any, config: ServiceConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(config.stop_within_s)),
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._host = config.host
        self.is_interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not by uvicorn: it would raise them again afterwards."""
        yield

    async def run_until_stopped(self, listener: socket.socket, loading: _Loading) -> None:
        """Serve until a signal, or an error of the loading, which is raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        place = f"[{self._host}]" if ":" in self._host else self._host
        logger.info("listening at http://%s:%d", place, listener.getsockname()[1])
        loading.start()
        watch = asyncio.ensure_future(self._watch(loading))
        await self.serve(sockets=[listener])
        watch.cancel()
        if loading.error is not None:
            raise loading.error
        if self.is_interrupted:
            raise KeyboardInterrupt

    async def _watch(self, loading: _Loading) -> None:
        while not loading.ended.is_set():
            await asyncio.sleep(0.1)
        if loading.error is not None:
            self.should_exit = True

    def _stop(self, number: int) -> None:
        if number == signal.SIGINT:
            self.force_exit = self.is_interrupted
            self.is_interrupted = True
        if not self.should_exit:
            logger.info(
                "%s: no more requests; %d are finished first", signal.Signals(number).name, len(self.server_state.tasks)
            )
        self.should_exit = True
