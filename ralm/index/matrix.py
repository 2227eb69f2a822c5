"""`matrix.npy`: all vectors of an index, row by row, mapped into memory.

numpy has no bf16: such a matrix holds the upper 16 bits of each fp32 value as uint16, and is widened when read.

Shapes: B questions, N passages, D values in a vector.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ralm.errors import ArtifactError, ConfigError
from ralm.index.config import Storage
from ralm.index.products import as_tensor, inner_products

MATRIX = "matrix.npy"
BLOCK_ROWS = 65536
"""Rows that are converted at a time."""
NUMPY_DTYPES: dict[Storage, str] = {"f16": "<f2", "f32": "<f4", "bf16": "<u2"}


def create_matrix(folder: Path, storage: Storage, num_passages: int, dimension: int) -> np.ndarray:
    """An empty `matrix.npy` for writing."""
    return create_array(folder / MATRIX, NUMPY_DTYPES[storage], (num_passages, dimension))


def create_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped array for writing, in a file whose space is taken at once.

    A page that is written to a mapped file on a full disk kills the process (SIGBUS), so the disk is asked before.

    Raises:
        OSError: the disk has no room for it.
    """
    array: np.ndarray = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
    return array


def open_matrix(path: Path, num_passages: int, dimension: int) -> np.ndarray:
    """Map a `matrix.npy`; its pages are read when they are touched.

    Raises:
        ArtifactError: no such array, or one of another shape or number format.
    """
    try:
        matrix_ND: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(f"{path}: expected an array of numbers, found {error}") from error
    if matrix_ND.shape != (num_passages, dimension) or matrix_ND.dtype.str not in NUMPY_DTYPES.values():
        raise ArtifactError(
            f"{path}: expected {num_passages} x {dimension} values of 16 or 32 bits, found shape {matrix_ND.shape} "
            f"of {matrix_ND.dtype}"
        )
    return matrix_ND


def to_float32(stored: np.ndarray) -> np.ndarray:
    """A copy of stored values as float32; bf16 bits (uint16) become the upper half of the number.

    Example:
        >>> to_float32(np.array([0x3FC0], np.uint16)).tolist()
        [1.5]
    """
    if stored.dtype != np.uint16:
        return stored.astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def to_storage(vector_ND: np.ndarray, storage: Storage) -> np.ndarray:
    """Vectors in the stored number format, rounded to the nearest (ties to even).

    Raises:
        ArtifactError: a value is infinite or undefined, or too large for the format.

    Example:
        >>> to_float32(to_storage(np.array([[1.0 + 2**-9]], np.float32), "bf16")).tolist()
        [[1.0]]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if storage == "bf16":
            bits = np.ascontiguousarray(vector_ND, np.float32).view(np.uint32)
            stored = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            is_finite = np.isfinite(vector_ND).all() and ((stored & 0x7F80) != 0x7F80).all()
        else:
            stored = np.asarray(vector_ND, NUMPY_DTYPES[storage])
            is_finite = np.isfinite(stored).all()
    if not is_finite:
        raise ArtifactError(f"a vector holds values that are infinite or undefined as {storage}")
    return stored


def rescore(question_BD: np.ndarray, row_BC: np.ndarray, matrix_ND: np.ndarray) -> np.ndarray:
    """Inner products of candidates, summed in fp64 and given in fp32; -inf for row -1.

    One question at a time, so that memory is that of its candidates; the same vector always gets the same score.

    Example:
        >>> rescore(np.array([[1.0, 2.0]], np.float32), np.array([[1, -1]]), np.eye(2, dtype=np.float32)).tolist()
        [[2.0, -inf]]
    """
    score_BC = np.full(row_BC.shape, -np.inf, np.float32)
    for score_C, row_C, question_D in zip(score_BC, row_BC, np.asarray(question_BD, np.float32), strict=True):
        found = row_C >= 0
        stored_CD = as_tensor(matrix_ND[row_C[found]])
        score_C[found] = inner_products(stored_CD, torch.from_numpy(question_D)).numpy()
    return score_BC


def check_search(question_BD: np.ndarray, k: int, num_passages: int, dimension: int) -> None:
    """Refuse what cannot be searched.

    Raises:
        ConfigError: k is not between 1 and N, the question vectors have another size than the passages', or hold values
            that are not finite.
    """
    if not 1 <= k <= num_passages:
        raise ConfigError(f"k: expected 1 to {num_passages}, the number of passages in the index, found {k}")
    if question_BD.shape[1] != dimension:
        raise ConfigError(f"question vectors have {question_BD.shape[1]} values, the index's passages {dimension}")
    if not np.isfinite(question_BD).all():
        raise ConfigError(
            "question vectors hold values that are infinite or undefined; the question encoder is damaged"
        )
