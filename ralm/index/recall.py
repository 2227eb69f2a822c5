"""How much of the exact result an index finds, measured against faiss's brute force as the independent reference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from ralm.index.faiss_import import faiss
from ralm.index.matrix import BLOCK_ROWS, to_float32


@contextlib.contextmanager
def matrix_products() -> Iterator[None]:
    """Let faiss compare by matrix products also where questions times dimension are few.

    faiss 1.15 takes a scalar path there, which is several times slower from four questions on.
    """
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def reference_rows(question_BD: np.ndarray, matrix_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact top k by faiss in fp32, block by block.

    Args:
        question_BD: float32.
        matrix_ND: vectors as `matrix.npy` holds them.
        k: passages per question, at most N.

    Returns:
        (score_BK, row_BK), best first.
    """
    heap = faiss.ResultHeap(len(question_BD), k, keep_max=True)
    question = np.ascontiguousarray(question_BD, np.float32)
    for start in range(0, len(matrix_ND), BLOCK_ROWS):
        block = to_float32(matrix_ND[start : start + BLOCK_ROWS])
        with matrix_products():
            score, row = faiss.knn(question, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        if score.shape[1] < k:
            padding = ((0, 0), (0, k - score.shape[1]))
            score = np.pad(score, padding, constant_values=-np.inf)
            row = np.pad(row, padding, constant_values=-1)
        heap.add_result(score, np.where(row >= 0, row + start, -1))
    heap.finalize()
    return heap.D, heap.I


def recall_at_k(found_score_BK: np.ndarray, exact_score_BK: np.ndarray) -> float:
    """Share of the k results that are as good as the exact result's k-th, 0 to 1.

    Scores are compared, not rows: of several passages with the same text any one is right. The tolerance is fp32
    rounding, 1e-5 of the largest score.

    Example:
        >>> recall_at_k(np.array([[3.0, 1.0]]), np.array([[3.0, 2.0]]))
        0.5
    """
    tolerance = 1e-5 * np.abs(exact_score_BK).max(initial=1.0)
    return float((found_score_BK >= exact_score_BK[:, -1:] - tolerance).mean())
