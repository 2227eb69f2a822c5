"""A local webhook for tests: keeps what it is sent, and answers as it is told."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Webhook:
    """A running server, use it with `with`."""

    statuses: list[int] = field(default_factory=list)
    """Of the next answers, in order; then 200."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    """Content type of each message."""
    url: str = ""

    def __enter__(self) -> Self:
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.messages.append(json.loads(body.decode("utf-8")))
                hook.types.append(self.headers["Content-Type"])
                status = hook.statuses.pop(0) if hook.statuses else 200
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/T0/s3cr3t"
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
