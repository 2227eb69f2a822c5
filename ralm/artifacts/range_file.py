"""A file in an object store that is read where it is asked for, as a Python file object."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ralm.artifacts import remote
from ralm.errors import DataError

SMALL_GAP_BYTES = 1 << 16
"""Bytes that are rather read than left out with another request."""


class RangeFile(io.RawIOBase):
    """Reads ask for their range of bytes and nothing else; ranges that were fetched ahead are taken from memory.

    Args:
        location: URL of the file.
        read_ahead: bytes that a read fetches at least; the rest waits for the next one.

    Raises:
        DataError: no such file.
        StorageError: see `ralm.artifacts.remote_errors.reaching`; reads raise it too.
    """

    def __init__(self, location: str, read_ahead: int = 0) -> None:
        size = remote.file_size(location)
        if size is None:
            raise DataError(f"{location}: no such file")
        self._location, self._size, self._read_ahead = location, size, read_ahead
        self._place = 0
        self._kept: list[tuple[int, bytes]] = []

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Get these ranges, several at once, and keep them for the reads that follow; what was kept before goes."""
        pieces = [remote.blocks(start, stop) for start, stop in merge_ranges(ranges, SMALL_GAP_BYTES)]
        self._kept = []
        parts = iter(remote.read_ranges(self._location, [block for blocks in pieces for block in blocks]))
        self._kept = [(blocks[0][0], b"".join(next(parts) for _ in blocks)) for blocks in pieces]

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes from the current place; all that follow where it is negative."""
        stop = self._size if size is None or size < 0 else min(self._place + size, self._size)
        start, self._place = self._place, max(stop, self._place)
        if stop <= start:
            return b""
        for first, content in self._kept:
            if first <= start and stop <= first + len(content):
                return content[start - first : stop - first]
        end = min(max(stop, start + self._read_ahead), self._size)
        content = b"".join(remote.read_ranges(self._location, remote.blocks(start, end)))
        if self._read_ahead:
            self._kept = [(start, content)]
        return content[: stop - start]

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the number of bytes."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the place of the next read."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """The place of the next read."""
        return self._place

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True


def merge_ranges(ranges: Sequence[tuple[int, int]], gap: int = 0) -> list[tuple[int, int]]:
    """Ranges of bytes in order, those with no more than this gap between them as one.

    >>> merge_ranges([(5, 7), (0, 4), (9, 10)], gap=1)
    [(0, 7), (9, 10)]
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
