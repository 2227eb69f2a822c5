"""A dump site for tests: a threaded HTTP server with dumps of wikis, which misbehaves where a test says so."""

from __future__ import annotations

import bz2
import hashlib
import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from xml.sax.saxutils import escape

ARTICLES = "articlesmultistreamdump"
FOREVER = 1 << 30


@dataclass
class Fault:
    """How the requests for a file go wrong."""

    status: int = 0
    """Answer with this error status."""
    retry_after: str = ""
    body: bytes | None = None
    """Send this instead of the file."""
    drop_after: int | None = None
    """Close the connection after this many bytes of the answer."""
    stall_after: int | None = None
    """Send nothing more after this many bytes, and keep the connection."""
    pause_s: float = 0.0
    """Pause after every 100 bytes."""
    times: int = FOREVER
    """Requests that go wrong before the file is well again."""


@dataclass
class DumpSite:
    """A running server, use it with `with`. `faults` are by path, such as `/enwiki/20260801/dumpstatus.json`."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    has_ranges: bool = True
    has_versions: bool = True
    """Whether files have an ETag; listings never have one."""
    is_down: bool = False
    """Close every connection without an answer."""
    down_after: str = ""
    """Be down as soon as this file was sent."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range header) of each request."""
    url: str = ""

    def __enter__(self) -> Self:
        site = self

        class Handler(_Handler):
            dump_site = site

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop: later connections are refused."""
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def stall(self) -> None:
        """Wait as a stalled connection does, until the server closes."""
        self._released.wait()

    def gets(self, suffix: str = "") -> list[str]:
        """Range headers of the GET requests for paths that end so."""
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith(suffix)]

    def add_dump(self, wiki: str, date: str, dumps: Sequence[bytes], status: str = "done") -> list[str]:
        """Publish a dump whose parts hold these XML exports; one that is not done has no files yet.

        Returns:
            Paths of the parts.
        """
        parts = {}
        for number, dump in enumerate(dumps, start=1):
            content = bz2.compress(dump)
            name = f"{wiki}-{date}-pages-articles-multistream{number}.xml-p{number}p{number + 9}.bz2"
            parts[name] = {"size": len(content), "sha1": hashlib.sha1(content).hexdigest()}
            parts[name.replace(".xml", "-index.txt")] = {"size": 1, "sha1": "0" * 40}
            if status == "done":
                self.files[f"/{wiki}/{date}/{name}"] = content
        self.set_status(wiki, date, {ARTICLES: {"status": status, "files": parts if status == "done" else {}}})
        return sorted(path for path in self.files if path.startswith(f"/{wiki}/{date}/") and path.endswith(".bz2"))

    def set_status(self, wiki: str, date: str, jobs: Any) -> None:
        """Write a status file."""
        self.files[f"/{wiki}/{date}/dumpstatus.json"] = json.dumps({"version": "0.8", "jobs": jobs}).encode()

    def remove_dump(self, wiki: str, date: str) -> None:
        """Delete a dump, as sites do with old ones."""
        for path in [path for path in self.files if path.startswith(f"/{wiki}/{date}/")]:
            del self.files[path]

    def answer(self, path: str) -> bytes | None:
        """Content of a file or listing; None where there is none."""
        if not path.endswith("/"):
            return self.files.get(path)
        dates = sorted({file.split("/")[2] for file in self.files if file.startswith(path)})
        if not dates:
            return None
        links = "".join(f'<a href="{date}/">{date}/</a>   01-Aug-2026 02:41   -\n' for date in dates)
        others = '<a href="/legal.html">terms of 20991231</a> <a href="20991230-notes.txt">notes</a>'
        return f'<html><a href="../">../</a>\n{links}<a href="latest/">latest/</a>{others}</html>'.encode()

    def take_fault(self, path: str) -> Fault:
        """The next fault of this path; one without effect where it is well."""
        planned = self.faults.get(path, [])
        while planned and planned[0].times <= 0:
            planned.pop(0)
        if not planned:
            return Fault()
        planned[0].times -= 1
        return planned[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dump_site: DumpSite
    headers: Message

    def do_HEAD(self) -> None:  # noqa: N802
        self._serve()

    def do_GET(self) -> None:  # noqa: N802
        self._serve()

    def _serve(self) -> None:
        site = self.dump_site
        site.requests.append((self.command, self.path, self.headers.get("Range", "")))
        if site.is_down:
            self.close_connection = True
            return
        fault = site.take_fault(self.path)
        body = site.answer(self.path) if fault.body is None else fault.body
        status = fault.status or (404 if body is None else 200)
        if body is None or status != 200:
            self.send_response(status)
            if fault.retry_after:
                self.send_header("Retry-After", fault.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._send_head(body)
        if self.command == "GET":
            self._send_body(body[start:], fault)
        if self.path == site.down_after:
            site.is_down = True

    def _send_head(self, body: bytes) -> int:
        """Status and headers; returns where the answer begins."""
        site, asked = self.dump_site, self.headers.get("Range", "")
        version = f'"{hashlib.sha1(body).hexdigest()}"' if site.has_versions and not self.path.endswith("/") else ""
        start = 0
        if asked and site.has_ranges and self.headers.get("If-Range") in (None, version):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if version:
            self.send_header("ETag", version)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        return start

    def _send_body(self, body: bytes, fault: Fault) -> None:
        limits = [limit for limit in (fault.drop_after, fault.stall_after) if limit is not None]
        limit = min([len(body), *limits])
        step = 100 if fault.pause_s else max(limit, 1)
        try:
            for place in range(0, limit, step):
                self.wfile.write(body[place : min(place + step, limit)])
                time.sleep(fault.pause_s)
        except OSError:  # the client had enough
            self.close_connection = True
            return
        if fault.stall_after is not None:
            self.dump_site.stall()
        if limit < len(body):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def export(pages: Iterable[tuple[int, str, str]], *, dbname: str = "enwiki") -> bytes:
    """An XML export of schema 0.10 with these (page id, title, wikitext)."""
    written = "".join(
        f"<page><title>{escape(title)}</title><ns>0</ns><id>{page}</id><revision><id>{page * 100}</id>"
        f"<model>wikitext</model><text>{escape(text)}</text></revision></page>"
        for page, title, text in pages
    )
    site = f'<siteinfo><dbname>{dbname}</dbname><namespaces><namespace key="0" /></namespaces></siteinfo>'
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">{site}{written}</mediawiki>'
    ).encode()
