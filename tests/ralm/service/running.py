"""The service on a free port of this process, and what a client says to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn

from ralm.service.app import build_app
from ralm.service.batching import Batcher
from ralm.service.protocol import Limits
from ralm.service.state import Service
from ralm.service.traces import TracedRequest, Traces

JSON = {"Content-Type": "application/json"}


class KeptTraces(Traces):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(is_on=False)
        self.kept: list[TracedRequest] = []

    def put(self, traced: TracedRequest) -> None:
        self.kept.append(traced)


class Running:
    """A server that listens; nothing is in its service yet."""

    def __init__(self, *, k: int = 0, max_batch: int = 4, max_waiting: int = 100, **limits: int) -> None:
        self.batcher = Batcher(max_batch=max_batch, max_waiting=max_waiting)
        self.service, self.traces = Service(self.batcher, k=k), KeptTraces()
        app = build_app(self.service, Limits(**limits), self.traces)
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def call(self, path: str, body: Any = None, **words: Any) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and content of an answer; a body that is no text goes as JSON."""
        method = words.get("method", "GET" if body is None else "POST")
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, content, words.get("headers", JSON if body is not None else {}))
            response = connection.getresponse()
            text = response.read()
            return response.status, dict(response.headers), json.loads(text) if text else None

    def ask(self, *questions: str, **params: int) -> tuple[int, Mapping[str, str], Any]:
        return self.call("/invocations", {"inputs": list(questions), "params": params})

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.batcher.stop(10)


@contextlib.contextmanager
def running(**settings: int) -> Iterator[Running]:
    server = Running(**settings)
    try:
        yield server
    finally:
        server.stop()
