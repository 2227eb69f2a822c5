from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ralm.errors import DataError
from ralm.fetch import http
from ralm.sources import fetch_file, source_digest

BODY = bytes(range(256)) * 4096  # 1 MiB


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parts(home: Path) -> list[Path]:
    return sorted(home.rglob("*.part"))


def test_a_file_is_fetched_once(site: Any) -> None:
    site.files["/dump.bz2"] = BODY
    path = fetch_file(f"{site.url}/dump.bz2", sha256=sha256(BODY))
    assert path.read_bytes() == BODY
    assert path.name == "dump.bz2"
    assert fetch_file(f"{site.url}/dump.bz2", sha256=sha256(BODY)) == path
    assert len(site.gets) == 1


def test_dropped_connections_are_resumed_where_they_broke(site: Any) -> None:
    site.files["/dump"] = BODY
    site.drop_after = [300_000, 200_000]
    path = fetch_file(f"{site.url}/dump", sha256=sha256(BODY))
    assert path.read_bytes() == BODY
    assert site.gets == ["", "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_after_giving_up(site: Any, ralm_home: Path) -> None:
    site.files["/dump"] = BODY
    site.drop_after = [300_000] + [0] * http.MAX_ATTEMPTS
    with pytest.raises(DataError, match=r"gave up after .* 300000 bytes kept"):
        fetch_file(f"{site.url}/dump", sha256=sha256(BODY))
    assert [part.stat().st_size for part in parts(ralm_home)] == [300_000]
    site.requests.clear()
    site.drop_after.clear()
    assert fetch_file(f"{site.url}/dump", sha256=sha256(BODY)).read_bytes() == BODY
    assert site.gets == ["bytes=300000-"]
    assert parts(ralm_home) == []


def test_a_file_that_changed_on_the_way_starts_afresh(site: Any) -> None:
    site.files["/dump"] = BODY
    site.drop_after = [300_000] + [0] * http.MAX_ATTEMPTS
    changed = BODY[::-1]
    with pytest.raises(DataError):
        fetch_file(f"{site.url}/dump", sha256=sha256(changed))
    site.files["/dump"], site.etag = changed, '"v2"'
    site.drop_after.clear()
    assert fetch_file(f"{site.url}/dump", sha256=sha256(changed)).read_bytes() == changed


@pytest.mark.parametrize("manner", ["no ranges", "no etag"])
def test_servers_without_ranges_or_versions_send_it_all_again(site: Any, manner: str) -> None:
    site.files["/dump"] = BODY
    site.drop_after = [300_000]
    site.ranges = manner != "no ranges"
    site.etag = "" if manner == "no etag" else site.etag
    assert fetch_file(f"{site.url}/dump", sha256=sha256(BODY)).read_bytes() == BODY


def test_a_wrong_checksum_names_both_and_leaves_nothing(site: Any, ralm_home: Path) -> None:
    site.files["/dump"] = b"damaged"
    with pytest.raises(DataError, match=f"expected sha256 {sha256(BODY)}, found {sha256(b'damaged')}"):
        fetch_file(f"{site.url}/dump", sha256=sha256(BODY))
    assert not [path for path in (ralm_home / "cache" / "downloads" / "url").rglob("*") if path.is_file()]
    site.files["/dump"] = BODY
    assert fetch_file(f"{site.url}/dump", sha256=sha256(BODY)).read_bytes() == BODY


@pytest.mark.parametrize(("name", "digest"), [("md5", hashlib.md5(b"x").hexdigest()), ("sha1", "0" * 40)])
def test_all_kinds_of_checksum_are_verified(site: Any, name: str, digest: str) -> None:
    site.files["/dump"] = BODY
    with pytest.raises(DataError, match=f"expected {name} {digest}"):
        fetch_file(f"{site.url}/dump", **{name: digest})  # type: ignore[arg-type]


def test_a_wrong_size_is_refused(site: Any) -> None:
    site.files["/dump"] = BODY
    with pytest.raises(DataError, match="expected 7 bytes, found more"):
        fetch_file(f"{site.url}/dump", sha256=sha256(BODY), size=7)


def test_a_missing_file_is_not_asked_for_again(site: Any) -> None:
    with pytest.raises(DataError, match="404"):
        fetch_file(f"{site.url}/nothing", sha256=sha256(BODY))
    assert len(site.gets) == 1


def test_a_busy_server_is_asked_again(site: Any) -> None:
    site.files["/dump"] = BODY
    site.fail_with = [503, 429]
    assert fetch_file(f"{site.url}/dump", sha256=sha256(BODY)).read_bytes() == BODY


def test_without_a_checksum_a_changed_file_is_fetched_anew(site: Any) -> None:
    site.files["/list.txt"] = b"one"
    url = f"{site.url}/list.txt"
    first = source_digest(url)
    assert fetch_file(url).read_bytes() == b"one"
    assert fetch_file(url).read_bytes() == b"one"
    assert len(site.gets) == 1
    site.files["/list.txt"], site.etag = b"two", '"v2"'
    assert source_digest(url) != first
    assert fetch_file(url).read_bytes() == b"two"


def test_without_a_version_a_file_is_known_by_its_content(site: Any) -> None:
    """Its size says nothing: the new content has the same."""
    site.etag = ""
    site.files["/list.txt"] = b"one"
    url = f"{site.url}/list.txt"
    first = source_digest(url)
    assert fetch_file(url).read_bytes() == b"one"
    assert source_digest(url) == first
    site.files["/list.txt"] = b"two"
    assert source_digest(url) != first
    assert fetch_file(url).read_bytes() == b"two"


def test_what_was_fetched_serves_when_the_server_is_gone(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/list.txt"] = b"one"
    url = f"{site.url}/list.txt"
    path, digest = fetch_file(url), source_digest(url)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert (fetch_file(url), source_digest(url)) == (path, digest)
    with pytest.raises(DataError, match="no answer from the server"):
        source_digest(f"{site.url}/other.txt")


def test_two_at_a_time_fetch_it_once(site: Any) -> None:
    site.files["/dump"] = BODY
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_file(f"{site.url}/dump", sha256=sha256(BODY)).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 4
    assert len(site.gets) == 1


KILLED = """
import os, signal, sys
from ralm.log import progress
from ralm.sources import fetch_file

update = progress.update

def dying(self, count=1, note=""):
    update(self, count, note)
    if self.done >= 1 << 20:
        os.kill(os.getpid(), signal.SIGKILL)

progress.update = dying
fetch_file(sys.argv[1], sha256=sys.argv[2])
"""


def test_a_killed_download_goes_on(site: Any, ralm_home: Path) -> None:
    body = BODY * 4
    site.files["/dump"] = body
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", KILLED, f"{site.url}/dump", sha256(body)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (part,) = parts(ralm_home)
    kept = part.stat().st_size
    assert 0 < kept < len(body)
    site.requests.clear()
    path = fetch_file(f"{site.url}/dump", sha256=sha256(body))
    assert path.read_bytes() == body
    assert site.gets == [f"bytes={kept}-"]
