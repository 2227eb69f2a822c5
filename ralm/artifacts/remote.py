"""Files in an object store: every request to one is made here, with its retries, limits and clear errors.

Single requests are repeated by the store's client (5xx, throttling, no connection, no answer); for an answer that broke
off it is asked again here. Both end after a while. A `location` is an fsspec URL such as `s3://bucket/x`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import fsspec
import fsspec.core

from ralm.artifacts.remote_errors import explain, is_cut_off, reaching
from ralm.errors import ConfigError, DataError, StorageError

logger = logging.getLogger(__name__)
TIMEOUT_VARIABLE: Final = "RALM_HTTP_TIMEOUT_S"
TIMEOUT_S = 60.0
"""Seconds without a single byte after which a connection counts as dropped, where the variable is not set."""
CONNECT_TIMEOUT_S = 10.0
MAX_REQUESTS = 10
"""Attempts of one request, with growing pauses of some 15 s in all; AWS_MAX_ATTEMPTS and AWS_RETRY_MODE go before."""
MAX_ANSWERS = 5
"""Answers in a row that may break off."""
FIRST_WAIT_S = 0.5
AT_ONCE = 16
"""Requests for large pieces at a time."""
MAX_CONNECTIONS = 64
"""Requests for small ones."""
SMALL_BYTES = 1 << 20
BLOCK_BYTES = 8 << 20
"""Files are read in pieces of this size, several at once."""
PART_BYTES = 16 << 20
"""Larger files are sent in parts of this size, several at once."""
MAX_PARTS = 10_000


def timeout_s() -> float:
    """`$RALM_HTTP_TIMEOUT_S`: seconds without a byte after which a connection counts as dropped.

    Raises:
        ConfigError: no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE) or str(TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{TIMEOUT_VARIABLE}: expected seconds, a positive number, found {text!r}")
    return seconds


def exists(location: str) -> bool:
    """True if a file or folder is there."""
    return _info(location) is not None


def is_folder(location: str) -> bool:
    """True if files are below it."""
    return (_info(location) or {}).get("type") == "directory"


def file_size(location: str) -> int | None:
    """Bytes of a file, None if it is not there."""
    info = _info(location)
    return None if info is None or info.get("type") == "directory" else int(info["size"])


def file_info(location: str) -> dict[str, Any]:
    """What the store says of a file or folder: type, size, and a version where it has one.

    Raises:
        DataError: nothing is there.
    """
    info = _info(location)
    if info is None:
        raise DataError(f"{location}: no such file")
    return info


def file_sizes(location: str) -> dict[str, int]:
    """Bytes of all files below a folder, by path inside it; empty where nothing is."""
    system, path = _file_system(location)
    try:
        with reaching(location):
            found = system.find(path, detail=True)
    except FileNotFoundError:
        return {}
    base = path.rstrip("/") + "/"
    return {str(name).removeprefix(base): int(info["size"]) for name, info in sorted(found.items())}


def list_folder(location: str) -> list[str]:
    """Locations of what is directly below a folder, sorted."""
    system, path = _file_system(location)
    with reaching(location):
        names = sorted(str(name) for name in system.ls(path, detail=False))
    return [str(system.unstrip_protocol(name)) for name in names]


def read_file(location: str) -> bytes:
    """The whole content of a file.

    Raises:
        DataError: it is not there, or a folder.
    """
    info = file_info(location)
    if info.get("type") == "directory":
        raise DataError(f"{location}: is a directory")
    return b"".join(read_ranges(location, blocks(0, int(info["size"]))))


def blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """A range of bytes in pieces of `BLOCK_BYTES`."""
    return [(first, min(first + BLOCK_BYTES, stop)) for first in range(start, stop, BLOCK_BYTES)]


def read_ranges(location: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several parts of a file, read at once; those whose answer broke off are read again.

    Args:
        location: of the file.
        ranges: first byte and byte after the last of each part.

    Raises:
        DataError: no such file, or it is shorter.
        StorageError: see `reaching`.
    """
    system, path = _file_system(location)
    is_small = all(stop - start <= SMALL_BYTES for start, stop in ranges)
    at_once = MAX_CONNECTIONS if is_small else AT_ONCE
    options = {"batch_size": at_once} if getattr(system, "async_impl", False) else {}
    found: dict[int, bytes] = {}
    failure: BaseException = EOFError()
    for attempt in range(MAX_ANSWERS):
        left = [number for number in range(len(ranges)) if number not in found]
        if not left:
            break
        if attempt:
            logger.warning("%s: the answer broke off (%s); asked again", location, failure)
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        starts, stops = [ranges[number][0] for number in left], [ranges[number][1] for number in left]
        with reaching(location):
            answers = system.cat_ranges([path] * len(left), starts, stops, on_error="return", **options)
        for number, answer in zip(left, answers, strict=True):
            start, stop = ranges[number]
            if isinstance(answer, bytes) and len(answer) == stop - start:
                found[number] = answer
            elif isinstance(answer, bytes):
                failure = EOFError(f"{len(answer)} of {stop - start} bytes from {start}")
            elif is_cut_off(answer):
                failure = answer
            elif isinstance(answer, FileNotFoundError):
                raise DataError(f"{location}: no such file") from answer
            else:
                with reaching(location):
                    raise answer
    if len(found) < len(ranges):
        raise explain(failure, location) from failure
    return [found[number] for number in range(len(ranges))]


def download(location: str, target: Path) -> None:
    """Copy a file from the store; goes on after what `target` already holds of it.

    Raises:
        DataError: no such file.
        StorageError: see `reaching`.
    """
    size = file_size(location)
    if size is None:
        raise DataError(f"{location}: no such file")
    with target.open("ab") as file:
        for start in range(min(file.tell(), size), size, AT_ONCE * BLOCK_BYTES):
            for block in read_ranges(location, blocks(start, min(start + AT_ONCE * BLOCK_BYTES, size))):
                file.write(block)


def upload(source: Path, location: str) -> None:
    """Copy a file into the store, whole or not at all; a large one in parts, which are removed where it fails.

    Raises:
        StorageError: see `reaching`.
    """
    system, path = _file_system(location)
    size = source.stat().st_size
    if size <= PART_BYTES:
        content = source.read_bytes()
        with reaching(location):
            system.pipe_file(path, content)
    elif hasattr(system, "call_s3"):
        _upload_parts(system, source, path, size, location)
    else:
        with reaching(location):
            system.put_file(str(source), path)


def write_file(location: str, content: bytes) -> None:
    """Write a small file, over what is there."""
    system, path = _file_system(location)
    with reaching(location):
        system.pipe_file(path, content)


def write_new(location: str, content: bytes) -> bool:
    """Write a small file where there is none; False if there is one. Of several writers at once one succeeds."""
    system, path = _file_system(location)
    with reaching(location):
        try:
            system.pipe_file(path, content, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            system.pipe_file(path, content)  # a store without conditional writes: the last writer wins
    return True


def remove_file(location: str) -> None:
    """Remove a file if it is there."""
    system, path = _file_system(location)
    with contextlib.suppress(FileNotFoundError), reaching(location):
        system.rm_file(path)


def _info(location: str) -> dict[str, Any] | None:
    system, path = _file_system(location)
    try:
        with reaching(location):
            return dict(system.info(path))
    except FileNotFoundError:
        return None


def _file_system(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it.

    Raises:
        StorageError: unknown scheme, or its package is not installed.
    """
    is_s3 = location.startswith(("s3://", "s3a://"))
    try:
        system, path = fsspec.core.url_to_fs(location, **(_s3_options() if is_s3 else {}))
    except (ValueError, ImportError) as error:
        raise StorageError(f"{location}: {error}") from error
    if is_s3:
        system.retries = 1  # its attempts would multiply with those of the client below it
    return cast(fsspec.AbstractFileSystem, system), str(path)


def _s3_options() -> dict[str, Any]:
    retries: dict[str, Any] = {}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = MAX_REQUESTS
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"
    config = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": timeout_s(),
        "max_pool_connections": MAX_CONNECTIONS,
        "retries": retries,
    }
    # Listings are never kept: other machines publish to the same store.
    return {"use_listings_cache": False, "config_kwargs": config}


def _upload_parts(system: Any, source: Path, path: str, size: int, location: str) -> None:
    """Send a file in parts to S3. s3fs itself leaves the parts of an interrupted upload behind."""
    bucket, key, _ = system.split_path(path)
    part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
    place = {"Bucket": bucket, "Key": key}
    with reaching(location):
        place["UploadId"] = system.call_s3("create_multipart_upload", **place)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        with source.open("rb") as file:
            file.seek((number - 1) * part_bytes)
            content = file.read(part_bytes)
        with reaching(location):
            answer = system.call_s3("upload_part", **place, PartNumber=number, Body=content)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(AT_ONCE // 2) as pool:
            parts = list(pool.map(send, range(1, -(-size // part_bytes) + 1)))
        with reaching(location):
            system.call_s3("complete_multipart_upload", **place, MultipartUpload={"Parts": parts})
    except BaseException as error:
        with contextlib.suppress(Exception):
            system.call_s3("abort_multipart_upload", **place)
        if not isinstance(error, FileNotFoundError):
            raise
        # The store does not know the upload: it is complete where only the answer to its last request was lost.
        if file_size(location) != size:
            raise explain(error, location) from error
