from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ralm.errors import DataError
from ralm.fetch.hub import fetch_hub_tree
from ralm.sources import fetch_file, fetch_tree, source_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The part of a hub's interface that fetching a model needs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.url = ""
        self.fetched: list[str] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802
            self._answer(with_body=False)

        def do_GET(self) -> None:  # noqa: N802
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            body, headers = None, {}
            if path.startswith("/api/models/org/tiny/"):
                siblings = [{"rfilename": name} for name in sorted(hub.files)]
                body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
                if "/tree/" in path:
                    rows = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in sorted(hub.files.items())
                    ]
                    body = json.dumps(rows).encode()
                headers = {"Content-Type": "application/json"}
            elif path.startswith("/org/tiny/resolve/"):
                name = path.split("/", 5)[5]
                body = hub.files.get(name)
                if body is not None:
                    digest = hashlib.sha1(body).hexdigest()
                    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                    if with_body:
                        hub.fetched.append(name)
            self.send_response(200 if body is not None else 404)
            for key, value in headers.items():
                self.send_header(key, value)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound" if "/org/tiny/" in path else "RepoNotFound")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.files = {"config.json": b"{}", "model.safetensors": b"w", "pytorch_model.bin": b"p", "README.md": b"r"}
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_a_model_needs_is_fetched(hub: Hub) -> None:
    tree = fetch_tree("hf://org/tiny")
    assert names(tree) == ["config.json", "model.safetensors"]
    fetched = list(hub.fetched)
    assert fetch_tree("hf://org/tiny@main") == tree
    assert hub.fetched == fetched


def test_the_tokenizer_alone(hub: Hub) -> None:
    assert names(fetch_hub_tree("hf://org/tiny", with_weights=False)) == ["config.json"]
    assert hub.fetched == ["config.json"]
    assert names(fetch_tree("hf://org/tiny")) == ["config.json", "model.safetensors"]


def test_pickled_weights_only_where_there_are_no_others(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    assert names(fetch_tree("hf://org/tiny")) == ["config.json", "pytorch_model.bin"]


def test_a_folder_inside_a_repository(hub: Hub) -> None:
    hub.files |= {"reader/config.json": b"{1}", "reader/model.safetensors": b"w2"}
    tree = fetch_tree("hf://org/tiny/reader")
    assert names(tree) == ["config.json", "model.safetensors"]
    assert (tree / "model.safetensors").read_bytes() == b"w2"


def test_one_file(hub: Hub) -> None:
    assert fetch_file(f"hf://org/tiny@{COMMIT}/config.json").read_bytes() == b"{}"
    with pytest.raises(DataError, match=r"hf://org/tiny/nothing.json: the hub did not give it"):
        fetch_file("hf://org/tiny/nothing.json")


def test_the_digest_is_that_of_the_commit(hub: Hub) -> None:
    assert source_digest("hf://org/tiny") == source_digest(f"hf://org/tiny@{COMMIT}")
    with pytest.raises(DataError, match="hf://org/other: the hub did not give it"):
        source_digest("hf://org/other")


def test_what_was_fetched_serves_when_the_hub_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, digest = fetch_tree("hf://org/tiny"), source_digest("hf://org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert (fetch_tree("hf://org/tiny"), source_digest("hf://org/tiny")) == (tree, digest)
    with pytest.raises(DataError, match="the hub did not give it"):
        fetch_tree("hf://org/never-fetched")
