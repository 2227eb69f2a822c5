"""A small HTTP server and an object store whose manners the tests decide."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ralm.artifacts import remote
from ralm.fetch import http
from tests.s3_proxy import BUCKET, S3Proxy, connected, s3_server


@dataclass
class Site:
    """Files by path, and how the server treats those who ask for them."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"v1"'
    ranges: bool = True
    drop_after: list[int] = field(default_factory=list)
    """For each of the next GET requests: close the connection after this many bytes."""
    fail_with: list[int] = field(default_factory=list)
    """For each of the next GET requests: answer with this status."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range header) of each request."""

    @property
    def gets(self) -> list[str]:
        """Range headers of the GET requests."""
        return [ranges for method, _, ranges in self.requests if method == "GET"]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running server; waiting between attempts is cut to nothing."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.001)
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # noqa: N802
            self._answer(with_body=False)

        def do_GET(self) -> None:  # noqa: N802
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            asked = self.headers.get("Range", "")
            site.requests.append((self.command, self.path, asked))
            body = site.files.get(self.path)
            status = site.fail_with.pop(0) if with_body and site.fail_with else 200 if body is not None else 404
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            assert body is not None
            start = 0
            if asked and site.ranges and self.headers.get("If-Range") == site.etag:
                start = int(asked.removeprefix("bytes=").split("-")[0])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if site.etag:
                self.send_header("ETag", site.etag)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            if with_body:
                limit = site.drop_after.pop(0) if site.drop_after else len(body)
                self.wfile.write(body[start : start + limit])
                if limit < len(body) - start:
                    self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def s3_address() -> Iterator[tuple[str, int]]:
    """Of an S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(s3_address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """The proxy in front of it; the test has a store of its own there, and waiting is cut to nothing."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    standard = pytest.importorskip("botocore.retries.standard")
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.001)
    with S3Proxy(s3_address) as proxy, connected(proxy.url, monkeypatch):
        monkeypatch.setenv("RALM_STORE_URI", f"s3://{BUCKET}/{uuid.uuid4().hex}")
        yield proxy
