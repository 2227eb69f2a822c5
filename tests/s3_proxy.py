"""An object store for tests: moto's S3 server behind an HTTP proxy that counts, and misbehaves where a test says so."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest

FOREVER = 1 << 30
BUCKET = "ralm"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{0}</Code><Message>{0} for a test</Message></Error>'


@dataclass
class Request:
    """What a client asked for, and what it got."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    """Names in lower case."""
    sent_bytes: int = 0
    """Of the answer's body."""


@dataclass
class Fault:
    """How requests go wrong."""

    when: Callable[[Request], bool]
    status: int = 0
    """Answer with this error status."""
    code: str = "InternalError"
    """And this S3 error code."""
    drop_after: int | None = None
    """Close the connection after this many bytes of the answer's body, -1: before its first line. The store did it."""
    refuse: bool = False
    """Close the connection; the store hears nothing."""
    stall_s: float = 0.0
    """Wait so long before the answer."""
    then: Callable[[], Any] = field(default=lambda: None)
    """Call this first."""
    times: int = FOREVER
    """Requests that go wrong before all is well again."""


class S3Proxy:
    """A running proxy in front of an S3 server, use it with `with`."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._server_address, self._lock = server, threading.Lock()

    def __enter__(self) -> Self:
        proxy = self

        class Handler(_Handler):
            s3 = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(self, method: str, contains: str = "", **how: Any) -> Fault:
        """Let requests with this method (`*`: any), and with these words in path or query, go wrong."""

        def when(request: Request) -> bool:
            return method in ("*", request.method) and contains in f"{request.path}?{'&'.join(request.query)}"

        fault = Fault(when, **how)
        self.faults.append(fault)
        return fault

    def gets(self, contains: str = "") -> list[Request]:
        """GET requests for objects whose path has these words."""
        return [seen for seen in self.requests if seen.method == "GET" and contains in seen.path and not seen.query]

    def puts(self, contains: str = "") -> list[Request]:
        """PUT requests, also of parts, whose path has these words."""
        return [seen for seen in self.requests if seen.method == "PUT" and contains in seen.path]

    def got_bytes(self, contains: str = "") -> int:
        """Bytes of these objects that were sent."""
        return sum(seen.sent_bytes for seen in self.gets(contains))

    def note(self, request: Request) -> Fault | None:
        """Keep a request; the fault that strikes it."""
        with self._lock:
            self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.times > 0 and fault.when(request)), None)
            if fault is not None:
                fault.times -= 1
        return fault

    def forward(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        """Status, headers and body of the store's answer."""
        connection = http.client.HTTPConnection(*self._server_address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, target, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    s3: S3Proxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        query.pop("x-id", None)
        request = Request(self.command, parts.path, query, {name.lower(): text for name, text in self.headers.items()})
        fault = self.s3.note(request)
        if fault is not None:
            fault.then()
            time.sleep(fault.stall_s)
            if fault.refuse:
                self._hang_up()
                return
            if fault.status:
                self._send(fault.status, [("Content-Type", "application/xml")], _ERROR.format(fault.code).encode())
                return
        status, headers, content = self.s3.forward(self.command, self.path, body, dict(self.headers.items()))
        drop_after = None if fault is None else fault.drop_after
        if drop_after == -1:
            self._hang_up()
            return
        request.sent_bytes = len(content) if drop_after is None else min(drop_after, len(content))
        self._send(status, headers, content, drop_after)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

    def _send(self, status: int, headers: Any, content: bytes, drop_after: int | None = None) -> None:
        self.send_response_only(status)
        of_head = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "keep-alive"):
                self.send_header(name, value)
        size = of_head[0] if self.command == "HEAD" and of_head else str(len(content))
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:drop_after])
        if drop_after is not None:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        """Reset the connection, as a router does that forgot it."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Address of moto's S3 server in this process, with an empty bucket; skips the test where moto is missing."""
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        client(f"http://{host}:{port}").create_bucket(Bucket=BUCKET)
        yield host, port
    finally:
        server.stop()


def client(url: str) -> Any:
    """A plain client of the object store at this address, to look at what is there."""
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)


@contextlib.contextmanager
def connected(url: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process and those it starts talk to the object store at this address, and give up soon."""
    for name, value in {"AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "4", **CREDENTIALS}.items():
        patch.setenv(name, value)
    patch.delenv("AWS_PROFILE", raising=False)
    files = fsspec.get_filesystem_class("s3")
    files.clear_instance_cache()
    yield
    files.clear_instance_cache()
