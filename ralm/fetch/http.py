"""Resumable download of one remote file: HTTP with ranges, or any other fsspec URL.

A download grows as `NAME.part` with a note of what it is a part of (`NAME.part.json`), and gets its own name when it
is whole and its checksum is right. A dropped connection is tried again from where it broke; a killed process goes on
later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from ralm.artifacts import remote
from ralm.artifacts.files import write_json
from ralm.artifacts.range_file import RangeFile
from ralm.artifacts.remote import TIMEOUT_VARIABLE, timeout_s
from ralm.errors import DataError, UnreachableError
from ralm.log import progress

logger = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 20
READ_AHEAD_BYTES = 1 << 25
"""Of other URLs than HTTP so much is fetched at a time, in several pieces at once."""
T = TypeVar("T")
MAX_ATTEMPTS = 6
"""Attempts in a row without a single new byte."""
MAX_QUESTIONS = 3
"""Attempts to get a small answer."""
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 120.0
"""A server that asks to be left alone for longer (`Retry-After`) is given up."""
MAX_SMALL_BYTES = 1 << 26
_USER_AGENT = "ralm-pipelines (resumable download)"
_DROPPED = (ConnectionError, TimeoutError, http.client.HTTPException, urllib.error.URLError)
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteState:
    """What a server says about a file without sending it."""

    size: int | None
    validator: str
    """Strong ETag, else date of last change, else empty."""

    @property
    def identity(self) -> str:
        """Changes when the file does, as far as the server tells."""
        return f"{self.validator}/{self.size}"


class AnswerError(DataError):
    """The server answered with an error that will not pass, such as 404."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class _DroppedError(Exception):
    """The connection ended early; what came so far is kept."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """How long the server wants to be left alone."""


def remote_state(url: str) -> RemoteState:
    """Ask for size and version of a remote file.

    Raises:
        DataError: there is no such file.
        UnreachableError: no answer from the server.
    """
    if not _is_http(url):
        return _file_system_state(url)
    try:
        return _ask(url, "HEAD", lambda response: _state(response.headers))
    except AnswerError as error:
        if error.code in (405, 501):  # a server without HEAD
            return RemoteState(size=None, validator="")
        raise


def read_small(url: str) -> bytes:
    """The content of a small remote file as it is now; nothing is kept.

    Raises:
        DataError: there is no such file, or it is larger than 64 MiB.
        UnreachableError: no whole answer from the server.
    """
    if not _is_http(url):
        _file_system_state(url)
        return remote.read_file(url)
    return _ask(url, "GET", lambda response: _read_small(url, response))


def _read_small(url: str, response: http.client.HTTPResponse) -> bytes:
    content = response.read(MAX_SMALL_BYTES + 1)
    if len(content) > MAX_SMALL_BYTES:
        raise DataError(f"{url}: expected at most {MAX_SMALL_BYTES} bytes, found more")
    if response.length:
        raise http.client.IncompleteRead(content, response.length)
    return content


def _ask(url: str, method: str, take: Callable[[Any], T]) -> T:
    """What is taken from the answer to a request that changes nothing; tried again where that may help."""
    request = urllib.request.Request(url, method=method, headers=_headers())
    for attempt in range(MAX_QUESTIONS):
        try:
            with urllib.request.urlopen(request, timeout=timeout_s()) as response:
                return take(response)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _TRY_AGAIN:
                raise AnswerError(f"{url}: the server answered {error.code} {error.reason}", code=error.code) from error
            reason, asked_s = f"{error.code} {error.reason}", _retry_after_s(error.headers)
        except (*_DROPPED, OSError) as error:
            reason, asked_s = _why(error), 0.0
        if attempt + 1 == MAX_QUESTIONS or asked_s > MAX_WAIT_S:
            break
        time.sleep(max(asked_s, FIRST_WAIT_S * 2**attempt))
    raise UnreachableError(f"{url}: no answer from the server: {reason}{_asked(asked_s)}")


def download(url: str, target: Path, *, digests: Mapping[str, str], size: int | None = None) -> None:
    """Fetch a file, going on from `target.part` where an earlier call stopped. The caller holds the lock.

    Args:
        url: HTTP or any other fsspec URL of one file.
        target: where it goes when it is whole.
        digests: expected hex digest by algorithm (`sha256`, `sha1`, `md5`); may be empty.
        size: expected bytes, None where unknown.

    Raises:
        DataError: no such file, a connection that keeps breaking, or a wrong size or checksum. After a wrong one the
            part is removed, so that the next call starts afresh.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = 0
    with progress(total=size, what=f"download {target.name}", unit="bytes") as bar:
        while True:
            before = _part_size(part)
            try:
                for _ in _append(url, part):
                    bar.total = bar.total or _note(part, url).size
                    bar.update(_part_size(part) - bar.done)
                    if size is not None and _part_size(part) > size:
                        break  # another file, or one without an end; the check says so
                break
            except _DroppedError as error:
                failures = 1 if _part_size(part) > before else failures + 1
                if failures >= MAX_ATTEMPTS or error.wait_s > MAX_WAIT_S:
                    raise DataError(
                        f"{url}: {error}; gave up after {failures} attempts with {_part_size(part)} bytes kept;"
                        " run the same command again to go on"
                    ) from error
                wait_s = max(error.wait_s, min(FIRST_WAIT_S * 2 ** (failures - 1), 30.0))
                logger.warning("%s: %s; next attempt in %.0f s", url, error, wait_s)
                time.sleep(wait_s)
    _check(url, part, digests, size)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(target)
    _note_path(part).unlink(missing_ok=True)


def _append(url: str, part: Path) -> Iterator[None]:
    """Add what is missing to the part, block by block. Raises `_DroppedError` if the end is not reached."""
    with _open_rest(url, part) as (stream, expected), part.open("ab") as file:
        read = getattr(stream, "read1", stream.read)  # as it comes: what a slow server sent is kept when it drops
        while True:
            try:
                block = read(BLOCK_BYTES)
            except (*_DROPPED, OSError) as error:
                raise _DroppedError(f"the connection broke ({_why(error)})") from error
            if not block:
                break
            file.write(block)
            file.flush()
            yield
    found = _part_size(part)
    if expected is not None and found < expected:
        raise _DroppedError(f"the connection ended after {found} of {expected} bytes")


@contextlib.contextmanager
def _open_rest(url: str, part: Path) -> Iterator[tuple[IO[bytes] | RangeFile, int | None]]:
    """A stream of what comes after the part, and the size of the whole; a part of another version is emptied."""
    if not _is_http(url):
        with _open_file_system_rest(url, part) as opened:
            yield opened
        return
    note, offset = _note(part, url), _part_size(part)
    headers = _headers()
    if offset and note.validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": note.validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing after the end: it is whole, or not ours
            if offset == note.size:
                with open(os.devnull, "rb") as nothing:
                    yield nothing, offset
                return
            _start_part(part, url, RemoteState(size=None, validator=""))
            raise _DroppedError("the server has no such range") from error
        if error.code in _TRY_AGAIN:
            asked_s = _retry_after_s(error.headers)
            raise _DroppedError(f"the server answered {error.code} {error.reason}{_asked(asked_s)}", asked_s) from error
        raise AnswerError(f"{url}: the server answered {error.code} {error.reason}", code=error.code) from error
    except (*_DROPPED, OSError) as error:
        raise _DroppedError(f"no answer from the server: {_why(error)}") from error
    with response:
        state = _state(response.headers)
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                _start_part(part, url, state)
                raise _DroppedError("the server sent another range than asked for")
            total = None if state.size is None else state.size + offset
        else:
            _start_part(part, url, state)
            total = state.size
        yield response, total


@contextlib.contextmanager
def _open_file_system_rest(url: str, part: Path) -> Iterator[tuple[RangeFile, int | None]]:
    state = _file_system_state(url)
    if not _part_size(part) or _note(part, url).validator != state.identity:
        _start_part(part, url, RemoteState(size=state.size, validator=state.identity))
    with RangeFile(url, read_ahead=READ_AHEAD_BYTES) as stream:
        stream.seek(_part_size(part))
        yield stream, state.size


def _file_system_state(url: str) -> RemoteState:
    info = remote.file_info(url)
    if info.get("type") == "directory":
        raise DataError(f"{url}: expected a file, found a folder")
    names = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
    validator = next((str(info[name]) for name in names if info.get(name)), "")
    return RemoteState(size=info.get("size"), validator=validator)


def _check(url: str, part: Path, digests: Mapping[str, str], size: int | None) -> None:
    problem = ""
    if size is not None and (found_size := _part_size(part)) != size:
        problem = f"expected {size} bytes, found {found_size if found_size < size else 'more'}"
    for algorithm, expected in digests.items():
        with part.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if not problem and found != expected.lower():
            problem = f"expected {algorithm} {expected}, found {found}"
    if problem:
        part.unlink()
        _note_path(part).unlink(missing_ok=True)
        raise DataError(f"{url}: {problem}; the download was thrown away")


def _state(headers: Mapping[str, str]) -> RemoteState:
    etag = headers.get("ETag") or ""
    size = headers.get("Content-Length")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
    return RemoteState(size=int(size) if size and size.isdigit() else None, validator=validator)


def _why(error: Exception) -> str:
    """Why a connection broke, in words."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"nothing came for {timeout_s():g} s, see {TIMEOUT_VARIABLE}"
    return str(reason) or type(reason).__name__


def _retry_after_s(headers: Message) -> float:
    """Seconds that the server asks to wait, as a number or a date; 0 where it does not."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _asked(wait_s: float) -> str:
    return f" and asks to be left alone for {wait_s:.0f} s" if wait_s else ""


def _headers() -> dict[str, str]:
    return {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _start_part(part: Path, url: str, state: RemoteState) -> None:
    part.write_bytes(b"")
    write_json(_note_path(part), {"url": url, "validator": state.validator, "size": state.size})


def _part_size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path, url: str) -> RemoteState:
    """What the part is a part of; nothing known where there is no note, or it came from another server."""
    try:
        plain = json.loads(_note_path(part).read_text(encoding="utf-8"))
        if plain["url"] == url:
            return RemoteState(size=plain["size"], validator=plain["validator"])
    except (OSError, ValueError, KeyError):
        pass
    return RemoteState(size=None, validator="")


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
