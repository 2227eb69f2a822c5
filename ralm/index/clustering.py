"""Centroids of the lists of an index, and which list a vector belongs to: the centroid with the largest inner product.

Assignments are exact (`ralm/index/scan.py`), so that they are the same on every machine and for any number of threads,
whatever the number format of the products, and take a fraction of the time of faiss's.

Shapes: N vectors, L lists, D values in a vector.
"""

from __future__ import annotations

import numpy as np
import torch

from ralm.device import has_fast_bf16
from ralm.index.matrix import to_float32
from ralm.index.scan import CpuScan

ITERATIONS = 8
QUESTIONS_AT_ONCE = 2048


class Lists:
    """The centroids, ready to be compared with.

    Args:
        centroid_LD: float32.
    """

    def __init__(self, centroid_LD: np.ndarray) -> None:
        dtype = torch.bfloat16 if has_fast_bf16(torch.device("cpu")) else torch.float32
        number_L = np.arange(len(centroid_LD))
        self._scan = CpuScan(centroid_LD, number_L, dtype=dtype, is_held=True, questions_at_once=QUESTIONS_AT_ONCE)

    def assign(self, vector_ND: np.ndarray) -> np.ndarray:
        """The list of each vector, int64 [N]; of equally good ones the first.

        Args:
            vector_ND: float32.
        """
        return self._scan.nearest(vector_ND)


def train_centroids(matrix_ND: np.ndarray, num_lists: int, *, num_points: int, seed: int = 0) -> np.ndarray:
    """Spherical k-means (Dhillon and Modha 2001): centroids of length 1, float32 [L, D].

    Equal vectors give equal centroids. A list that gets no vector takes the place beside the centroid of the largest
    one.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them, L at least.
        num_lists: L.
        num_points: size of the random sample that it is trained on.
        seed: of the sample.
    """
    generator = np.random.default_rng(seed)
    size = min(len(matrix_ND), max(num_points, num_lists))
    row_N = np.sort(generator.choice(len(matrix_ND), size, replace=False))
    sample_ND = to_float32(matrix_ND[row_N])
    centroid_LD = _unit(sample_ND[np.sort(generator.choice(size, num_lists, replace=False))])
    for _ in range(ITERATIONS):
        list_N = Lists(centroid_LD).assign(sample_ND)
        sum_LD, count_L = _sums(sample_ND, list_N, num_lists)
        for empty, large in zip(np.flatnonzero(count_L == 0), np.argsort(-count_L, kind="stable"), strict=False):
            sum_LD[empty] = _unit(sum_LD[large : large + 1])[0] + 0.01 * centroid_LD[empty]
        centroid_LD = _unit(sum_LD)
    return centroid_LD


def _sums(vector_ND: np.ndarray, list_N: np.ndarray, num_lists: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the vectors of each list, in the order of the rows, and their number."""
    count_L = np.bincount(list_N, minlength=num_lists)
    sum_LD = np.zeros((num_lists, vector_ND.shape[1]), np.float32)
    filled = np.flatnonzero(count_L)
    start_L = np.cumsum(count_L) - count_L
    sum_LD[filled] = np.add.reduceat(vector_ND[np.argsort(list_N, kind="stable")], start_L[filled], axis=0)
    return sum_LD, count_L


def _unit(vector_LD: np.ndarray) -> np.ndarray:
    length_L1 = np.linalg.norm(vector_LD.astype(np.float64), axis=1, keepdims=True)
    return (vector_LD / np.maximum(length_L1, 1e-30)).astype(np.float32)
