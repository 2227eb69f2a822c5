"""Read plain columns of a Parquet file straight into arrays, without a decoder: the bytes of the file are the values.

A page begins with a header in Thrift's compact protocol (Parquet format, `PageHeader`): the type of the page, its size
before and after compression, and for a data page how many values it has and their encoding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from ralm.errors import ArtifactError

LONGEST_HEADER = 1 << 12
LONGEST_GAP = 1 << 16
"""Bytes between wanted ones that are read with them."""
BUFFERS_AT_ONCE = 512
"""Buffers filled by a call; systems allow 1,024."""
_WIDTHS = {"INT64": 8}
_TYPE, _SIZE, _STORED_SIZE, _DATA_HEADER = 1, 2, 3, 5
_NUM_VALUES, _ENCODING = 1, 2
_TRUE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 3, 4, 5, 6, 7, 8, 12


def read_plain(path: Path, file: pq.ParquetFile, arrays: Mapping[str, np.ndarray]) -> bool:
    """Fill arrays from columns, in the order of the file, so that each byte is copied once.

    Args:
        path: of the file.
        file: the same one, open.
        arrays: for each column a contiguous array of the bytes of its values.

    Returns:
        Whether they are filled; not where a column is laid out otherwise (`plain_pages`).

    Raises:
        ArtifactError: the file ends before its values do.
    """
    wanted: list[tuple[int, memoryview]] = []
    for name, array in arrays.items():
        content, width, row = array.reshape(-1).view(np.uint8).data, array.nbytes // max(1, len(array)), 0
        for page in plain_pages(path, file, name):
            wanted.append((page.start, content[row * width : (row + page.num_values) * width]))
            row += page.num_values
        if row != len(array) or not row:
            return False
    with path.open("rb", buffering=0) as opened:
        _read_into(opened, sorted(wanted, key=lambda each: each[0]))
    return True


def _read_into(opened: IO[bytes], wanted: list[tuple[int, memoryview]]) -> None:
    """Fill buffers, given with their places in the file and in that order."""
    between = memoryview(bytearray(LONGEST_GAP))
    while wanted:
        place = wanted[0][0]
        opened.seek(place)
        buffers: list[memoryview] = []
        while wanted and wanted[0][0] - place <= LONGEST_GAP and len(buffers) < BUFFERS_AT_ONCE:
            start, buffer = wanted.pop(0)
            buffers += [between[: start - place], buffer]
            place = start + len(buffer)
        while buffers:
            count = os.readv(opened.fileno(), buffers)
            if not count:
                raise ArtifactError(f"{opened.name}: the file ends before its values do; it is damaged")
            while buffers and count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            if buffers:
                buffers[0] = buffers[0][count:]


class Page(NamedTuple):
    """Values of a page."""

    start: int
    """First byte in the file."""
    num_values: int


def plain_pages(path: Path, file: pq.ParquetFile, name: str) -> list[Page]:
    """The pages of a column of fixed width, in the order of the rows.

    Args:
        path: of the file.
        file: the same one, open.
        name: of the column.

    Returns:
        The pages; none where the values are not all plain, there may be nulls, or the file is not as its metadata says.
    """
    place = file.schema_arrow.names.index(name)
    column, pages = file.schema.column(place), []
    width = _WIDTHS.get(column.physical_type, column.length)
    if column.max_definition_level or column.max_repetition_level or width <= 0:
        return []
    with path.open("rb") as opened:
        for group in range(file.num_row_groups):
            chunk = file.metadata.row_group(group).column(place)
            if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
                return []
            found = _pages_of_chunk(opened, chunk.data_page_offset, chunk.total_compressed_size, width)
            if sum(page.num_values for page in found) != chunk.num_values:
                return []
            pages += found
    return pages


def _pages_of_chunk(opened: IO[bytes], start: int, size: int, width: int) -> list[Page]:
    pages, end, known = [], start + size, b""
    num_values = 0
    while start < end:
        opened.seek(start)
        head = opened.read(len(known))
        if not known or head != known:  # most pages of a column begin with the same bytes
            head += opened.read(min(LONGEST_HEADER, end - start - len(head)))
            length, num_values = _plain_header(head, width)
            if not num_values:
                return []
            known = head[:length]
        pages.append(Page(start + len(known), num_values))
        start += len(known) + num_values * width
    return pages if start == end else []


def _plain_header(head: bytes, width: int) -> tuple[int, int]:
    """Length of a page's header and its number of values; 0, 0 where it is no plain page."""
    try:
        header, length = _read_struct(head, 0)
        data = header[_DATA_HEADER]
        size = data[_NUM_VALUES] * width
        is_plain = (header[_TYPE], data[_ENCODING], header[_SIZE], header[_STORED_SIZE]) == (0, 0, size, size)
        return (length, data[_NUM_VALUES]) if is_plain else (0, 0)
    except (KeyError, IndexError, TypeError, ValueError):
        return 0, 0


def _read_struct(content: bytes, place: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and the place after it.

    A field begins with a byte: how much its number is above the last one's, and its type.

    Example:
        >>> _read_struct(bytes([0x15, 0x06, 0x00]), 0)
        ({1: 3}, 3)
    """
    fields: dict[int, Any] = {}
    number = 0
    while content[place]:
        step, kind = content[place] >> 4, content[place] & 15
        if step:
            number, place = number + step, place + 1
        else:
            number, place = _read_number(content, place + 1)
        fields[number], place = _read_value(content, place, kind)
    return fields, place + 1


def _read_value(content: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind <= _TRUE + 1:
        return kind == _TRUE, place
    if kind in (_I16, _I32, _I64):
        return _read_number(content, place)
    if kind == _STRUCT:
        return _read_struct(content, place)
    if kind == _BINARY:
        size, place = _read_varint(content, place)
        return None, place + size
    if kind in (_BYTE, _DOUBLE):
        return None, place + (1 if kind == _BYTE else 8)
    raise ValueError(f"type {kind}")


def _read_number(content: bytes, place: int) -> tuple[int, int]:
    value, place = _read_varint(content, place)
    return (value >> 1) ^ -(value & 1), place


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return value, place
        shift += 7
