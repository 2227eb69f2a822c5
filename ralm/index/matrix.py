"""`matrix.npy`: all vectors of an index, row by row, mapped into memory.

numpy has no bf16: such a matrix holds the upper 16 bits of each fp32 value as uint16, and is widened when read.

Shapes: B questions, C candidates of a question, P pairs of question and row, N passages, D values in a vector.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ralm.errors import ArtifactError, ConfigError
from ralm.index.config import Storage
from ralm.index.products import as_tensor, inner_products

MATRIX = "matrix.npy"
BLOCK_ROWS = 65536
"""Rows that are converted at a time."""
PAIRS_AT_ONCE = 512
"""Pairs of question and row that are scored at a time: their values stay in the cache."""
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

    The same vector always gets the same score.

    Example:
        >>> rescore(np.array([[1.0, 2.0]], np.float32), np.array([[1, -1]]), np.eye(2, dtype=np.float32)).tolist()
        [[2.0, -inf]]
    """
    score_BC = np.full(row_BC.shape, -np.inf, np.float32)
    found_BC = row_BC >= 0
    score_BC[found_BC] = score_pairs(question_BD, np.nonzero(found_BC)[0], row_BC[found_BC], matrix_ND)
    return score_BC


def score_pairs(
    question_BD: np.ndarray, question_P: np.ndarray, row_P: np.ndarray, matrix_ND: np.ndarray
) -> np.ndarray:
    """Inner products of pairs of a question and a row, as `rescore`; memory is bounded.

    Args:
        question_BD: float32.
        question_P: which question, int64.
        row_P: which row, int64.
        matrix_ND: vectors as `matrix.npy` holds them.

    Returns:
        float32 [P].
    """
    stored_ND, score_P = np.asarray(matrix_ND), np.empty(len(row_P), np.float32)
    for start in range(0, len(row_P), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        stored_PD = as_tensor(stored_ND.take(row_P[part], axis=0))
        score_P[part] = _scores(stored_PD, question_BD[question_P[part]].astype(np.float64))
    return score_P


def _scores(stored_PD: Tensor, asked_PD: np.ndarray) -> np.ndarray:
    """Scores of stored vectors, each with a question of its own (float64): [P].

    A sum in fp64 in any order rounds to the same fp32 as that of `inner_products`, unless it lies so near to the middle
    between two fp32 numbers that the rounding of the sum matters; only such pairs are added up in its order.
    """
    single_PD = stored_PD.float()
    sum_P = np.einsum("pd,pd->p", single_PD.double().numpy(), asked_PD)
    length_P = torch.linalg.vector_norm(single_PD, dim=1).numpy() + 1e-17  # squares below fp32 count as 0
    slack_P = 4 * np.finfo(np.float64).eps * asked_PD.shape[1] * length_P
    slack_P = slack_P * np.sqrt(np.einsum("pd,pd->p", asked_PD, asked_PD))
    with np.errstate(over="ignore", invalid="ignore"):
        low_P, high_P = (sum_P - slack_P).astype(np.float32), (sum_P + slack_P).astype(np.float32)
    is_clear_P = (low_P == high_P) & (low_P != 0)  # 0 has two signs
    if not is_clear_P.all():
        unclear = np.flatnonzero(~is_clear_P)
        low_P[unclear] = inner_products(stored_PD[unclear], torch.from_numpy(asked_PD[unclear])).numpy()
    return low_P


def best_candidates(
    question_BD: np.ndarray, row_BC: np.ndarray, matrix_ND: np.ndarray, k: int, id_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates of each question with the best scores, as sorting what `rescore` gives would find them.

    Products in fp32 say which can be among them; only those are scored exactly.

    Args:
        question_BD: float32.
        row_BC: candidates, row -1 for none; k of them at least.
        matrix_ND: vectors as `matrix.npy` holds them.
        k: how many.
        id_N: ids of the rows; among equal scores the lower one comes first.

    Returns:
        (score_BK float32, row_BK int64), best first.
    """
    question = torch.from_numpy(np.ascontiguousarray(question_BD, np.float32))
    exact_BD, stored_ND = question.double().numpy(), np.asarray(matrix_ND)
    (size, count), dimension = row_BC.shape, question.shape[1]
    score_BK, row_BK = np.empty((size, k), np.float32), np.empty((size, k), np.int64)
    unit = 2 * np.finfo(np.float32).eps * (dimension + 4)  # twice the usual bound: of this score and of the k-th best
    at_once = max(1, 2 * PAIRS_AT_ONCE // max(1, count))
    for start in range(0, size, at_once):
        part = slice(start, start + at_once)
        row_bC = row_BC[part]
        stored_PD = as_tensor(stored_ND.take(np.maximum(row_bC, 0).ravel(), axis=0))
        single_bCD = stored_PD.float().view(*row_bC.shape, dimension)
        near_bC = torch.bmm(question[part].unsqueeze(1), single_bCD.transpose(1, 2)).squeeze(1).numpy()
        longest_b = torch.linalg.vector_norm(single_bCD, dim=2).amax(dim=1).numpy()
        near_bC[row_bC < 0] = -np.inf
        error_b = unit * (longest_b + 1e-17) * np.linalg.norm(exact_BD[part], axis=1)
        kth_b = np.partition(near_bC, count - k, axis=1)[:, count - k]
        with np.errstate(invalid="ignore"):
            question_P, place_P = np.nonzero(~(near_bC < (kth_b - 2 * error_b)[:, None]) & (row_bC >= 0))
        row_P = row_bC[question_P, place_P]
        score_P = _scores(stored_PD[question_P * count + place_P], exact_BD[start + question_P])
        order_P = np.lexsort((id_N[row_P], -score_P, question_P))
        count_b = np.bincount(question_P, minlength=len(row_bC))
        place_bK = (np.cumsum(count_b) - count_b)[:, None] + np.arange(k)
        score_BK[part], row_BK[part] = score_P[order_P[place_bK]], row_P[order_P[place_bK]]
    return score_BK, row_BK


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
