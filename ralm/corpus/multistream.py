"""Multistream bz2 (Wikimedia's dumps): streams found by their magic number and decompressed in several threads.

Python's bz2 module releases the interpreter lock, so threads are enough, and nothing has to be sent between processes.
"""

from __future__ import annotations

import bz2
import mmap
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_STREAM = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")
SEGMENT_BYTES = 1 << 19
MAX_SEGMENT_BYTES = 1 << 21
"""A longer stream is not worth the memory; the file is read in one thread from there on."""
THREADS = 4


def decompress_segments(path: Path) -> Iterator[tuple[int, bytes]]:
    """Decompressed runs of whole streams, in order, each with the byte of the file where it ends.

    Stops without an error before the first run that is too long, truncated or damaged: what is behind the last byte
    that was given is left for the caller to read in the plain way.
    """
    if path.stat().st_size == 0:
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        try:
            segments = _segments(content)
            waiting: deque[tuple[int, Future[bytes | None]]] = deque()
            is_open = True
            while is_open or waiting:
                while is_open and len(waiting) < THREADS + 2:
                    start, end = next(segments, (0, 0))
                    if end == 0 or end - start > MAX_SEGMENT_BYTES:
                        is_open = False
                    else:
                        waiting.append((end, pool.submit(_decode, content[start:end])))
                if waiting:
                    end, future = waiting.popleft()
                    data = future.result()
                    if data is None:
                        return
                    yield end, data
        finally:
            pool.shutdown(cancel_futures=True)  # a reader that wants only the beginning does not wait for the rest


def _segments(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Start and end of runs of whole streams, at least `SEGMENT_BYTES` long (the last may be shorter)."""
    start = 0
    while start < len(content):
        match = _STREAM.search(content, start + SEGMENT_BYTES, min(len(content), start + MAX_SEGMENT_BYTES + 16))
        end = match.start() if match else len(content)
        yield start, end
        start = end


def _decode(segment: bytes) -> bytes | None:
    pieces = []
    try:
        while segment:
            decoder = bz2.BZ2Decompressor()
            pieces.append(decoder.decompress(segment))
            if not decoder.eof:
                return None
            segment = decoder.unused_data
    except (OSError, EOFError, ValueError):
        return None
    return b"".join(pieces)
