"""Local files as streams of bytes or lines, decompressed by their first bytes (bz2, gzip, zstd), in bounded memory.

Concatenated streams (multistream dumps, `cat a.gz b.gz`) read as one. A file that ends early is an error, never a short
result.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from ralm.corpus.multistream import decompress_segments
from ralm.errors import DataError

READ_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 28
"""A longer line is no record of any format read here."""


class _Decoder(Protocol):
    """What the three decompressors have in common."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


_DECODERS: dict[bytes, tuple[str, Callable[[], _Decoder]]] = {
    b"BZh": ("bz2", bz2.BZ2Decompressor),
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(wbits=31)),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()),
}


def read_chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content of a file in pieces.

    Raises:
        DataError: missing, truncated or damaged; the message names the byte in the compressed file.
    """
    try:
        with path.open("rb") as file:
            head, start = file.read(4), 0
            if head.startswith(b"BZh"):
                for end, data in decompress_segments(path):
                    yield data
                    start = end
                if start and start == path.stat().st_size:
                    return
            file.seek(start)
            blocks = iter(lambda: file.read(READ_BYTES), b"")
            for magic, (name, new_decoder) in _DECODERS.items():
                if head.startswith(magic):
                    yield from _decompress(path, blocks, start, name, new_decoder)
                    return
            yield from blocks
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decompress(
    path: Path, blocks: Iterator[bytes], done: int, name: str, new_decoder: Callable[[], _Decoder]
) -> Iterator[bytes]:
    decoder: _Decoder | None = None
    for block in blocks:
        data = block
        while data:
            if decoder is None:
                data = data.lstrip(b"\0") if name == "gzip" else data  # tapes and some tools pad with zeros
                if not data:
                    break
                decoder = new_decoder()
            try:
                piece = decoder.decompress(data)
            except (OSError, ValueError, EOFError, zlib.error, zstandard.ZstdError) as error:
                raise DataError(f"{path}: damaged {name} data near byte {done}: {error}") from error
            if piece:
                yield piece
            if not decoder.eof:
                break
            data, decoder = decoder.unused_data, None
        done += len(block)
    if decoder is not None:
        raise DataError(f"{path}: the {name} data ends too early, at byte {done}: the file is truncated")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 text file without their line ends; a byte order mark is left out.

    Raises:
        DataError: as `read_chunks`; no UTF-8; or a line too long to be one.
    """
    number, rest = 0, b""
    for chunk in read_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, _decode(path, number, line)
        if len(rest) > MAX_LINE_BYTES:
            raise DataError(f"{path} line {number + 1}: longer than {MAX_LINE_BYTES} bytes")
    if rest:
        yield number + 1, _decode(path, number + 1, rest)


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {number}: byte {error.start + 1} of the line is not UTF-8") from error
