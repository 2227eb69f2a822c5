"""`matrix.npy` in an object store: rows are fetched when they are first asked for, and then read from a local file.

For searches that score a few candidates exactly: of the vectors of a large corpus they touch a small part. What needs
all rows (an exact search, a re-index) takes a local copy of the file.

Shapes: N passages, D values in a vector.
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import Final

import numpy as np

from ralm.artifacts.files import Location, cache_folder
from ralm.artifacts.range_file import RangeFile, merge_ranges
from ralm.artifacts.remote import MAX_CONNECTIONS, blocks, read_ranges
from ralm.errors import ArtifactError
from ralm.index.matrix import NUMPY_DTYPES

BLOCK_BYTES: Final = 1 << 15
"""Rows are fetched in blocks of about this size: a smaller one takes as long to get."""


class RowsOnDemand:
    """Stands for the mapped matrix; `with_rows` gives the part of it that is wanted.

    What was fetched lies in a file without a name that is as large as the matrix, but takes the space of what is in it.
    It goes with the process.

    Args:
        location: URL of the `matrix.npy`.
        num_passages: N.
        dimension: D.

    Raises:
        ArtifactError: no such array, or one of another shape or number format.
    """

    def __init__(self, location: Location, num_passages: int, dimension: int) -> None:
        with RangeFile(location, read_ahead=4096) as file:
            try:
                if (version := np.lib.format.read_magic(file)) != (1, 0):
                    raise ValueError(f"version {version}")
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            except ValueError as error:
                raise ArtifactError(f"{location}: expected an array of numbers, found {error}") from error
            self._offset = file.tell()
        if shape != (num_passages, dimension) or is_fortran or dtype.str not in NUMPY_DTYPES.values():
            raise ArtifactError(
                f"{location}: expected {num_passages} x {dimension} values of 16 or 32 bits, found shape {shape} "
                f"of {dtype}"
            )
        self._location = location
        self._row_bytes = dimension * dtype.itemsize
        self._block_rows = max(1, BLOCK_BYTES // self._row_bytes)
        self._is_there = np.zeros(-(-num_passages // self._block_rows), bool)
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(dir=cache_folder("remote"))  # noqa: SIM115 - as long as this object
        self._file.truncate(max(num_passages * self._row_bytes, 1))
        self._local_ND = np.memmap(self._file, dtype=dtype, mode="r", shape=shape)
        self._rows = slice(0, num_passages)

    def __len__(self) -> int:
        return int(self._rows.stop - self._rows.start)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), int(self._local_ND.shape[1])

    def part(self, rows: slice) -> RowsOnDemand:
        """These rows as a matrix of their own, which shares what is fetched."""
        start, stop, _ = rows.indices(len(self))
        part = object.__new__(RowsOnDemand)
        part.__dict__.update(self.__dict__, _rows=slice(self._rows.start + start, self._rows.start + stop))
        return part

    def with_rows(self, rows: np.ndarray) -> np.ndarray:
        """The mapped matrix, of which at least these rows are there; those that were missing are fetched at once."""
        with self._lock:
            wanted = np.unique((rows + self._rows.start) // self._block_rows)
            missing = wanted[~self._is_there[wanted]]
            if missing.size:
                self._fetch(missing)
                self._is_there[missing] = True
        return self._local_ND[self._rows]

    def _fetch(self, missing: np.ndarray) -> None:
        block_bytes, end = self._block_rows * self._row_bytes, len(self._local_ND) * self._row_bytes
        limits = [(int(block) * block_bytes, min((int(block) + 1) * block_bytes, end)) for block in missing]
        pieces = [piece for start, stop in merge_ranges(limits) for piece in blocks(start, stop)]
        for first in range(0, len(pieces), MAX_CONNECTIONS):
            part = pieces[first : first + MAX_CONNECTIONS]
            asked = [(self._offset + start, self._offset + stop) for start, stop in part]
            found = read_ranges(self._location, asked)
            for (start, _), content in zip(part, found, strict=True):
                os.pwrite(self._file.fileno(), content, start)  # through the map, a full disk would kill the process


def part_of(matrix_ND: np.ndarray | RowsOnDemand, rows: slice) -> np.ndarray | RowsOnDemand:
    """Some rows of an open matrix; nothing is read."""
    return matrix_ND.part(rows) if isinstance(matrix_ND, RowsOnDemand) else matrix_ND[rows]


def with_rows(matrix_ND: np.ndarray | RowsOnDemand, rows: np.ndarray) -> np.ndarray:
    """A mapped matrix in which these rows can be read."""
    return matrix_ND.with_rows(rows) if isinstance(matrix_ND, RowsOnDemand) else matrix_ND
