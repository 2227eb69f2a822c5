"""Exact search of a million vectors on all cores, against faiss's exact index.

faiss as it is installed takes a scalar way where questions times values are below 128,000, as in all batches here;
"tuned" is faiss told to multiply matrices from four questions on, which is 2 to 7 times as fast. Ours gives scores
that are computed each on its own, and among equal ones the lower id first; its time includes that. Recall is measured
against products in fp64: a passage counts where its fp64 score is no smaller than the true hundredth but for fp32
rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.machine import interleaved, median, spread
from benchmarks.suite import Bench, Measured
from benchmarks.vector_inputs import real_vectors, spread_vectors
from ralm.index.faiss_import import faiss
from ralm.index.flat import FlatSearcher

CPU = torch.device("cpu")
K = 100
OURS, INSTALLED, TUNED = "ralm flat", "faiss", "tuned"
ONE_BY_ONE = 8
"""Questions asked one after another in a measurement of single questions."""
BLOCK_ROWS = 65536
TUNED_THRESHOLD, LEAST_TUNED = 20, 4
"""Questions from which faiss multiplies matrices, and from which that is faster."""


def measure(bench: Bench) -> Measured:
    """S1: 1M x 384, k = 100; 1, 32 and 256 questions at once."""
    vector_ND, question_BD = spread_vectors(bench), real_vectors(bench)[1]
    ours, index = FlatSearcher(vector_ND, CPU), exact_faiss(vector_ND)
    figures: dict[str, float] = {}
    rows = ["| questions | way | ms | ms, least to most | it / ours |", "|---|---|---|---|---|"]
    for size in (1, 8, 16) if bench.small else (1, 32, 256):
        batches = [question_BD[start : start + size] for start in range(0, ONE_BY_ONE if size == 1 else size, size)]
        ways = {
            OURS: functools.partial(ask, ours.search, batches),
            INSTALLED: functools.partial(ask, index.search, batches),
            TUNED: functools.partial(ask, functools.partial(search_tuned, index), batches),
        }
        ways[OURS]()  # warm
        times = interleaved(ways, CPU, bench.repeats)
        for name, spent in times.items():
            ratio = median(spent) / median(times[OURS])
            in_ms = [second * 1000 / len(batches) for second in spent]
            rows.append(f"| {size} | {name} | {median(in_ms):.2f} | {spread(in_ms)} | {ratio:.2f} |")
            if name != OURS:
                figures[f"x_{name}_{size}"] = ratio
            else:
                figures[f"ms_{size}"] = median(in_ms)
    checked_BD = question_BD[: 16 if bench.small else 64]
    figures["recall_at_100"] = exact_recall(vector_ND, checked_BD, ours.search(checked_BD, K)[1])
    return Measured(figures, rows)


def ask(search: Callable[[np.ndarray, int], object], batches: list[np.ndarray]) -> None:
    """Search each batch."""
    for batch in batches:
        search(batch, K)


def exact_faiss(vector_ND: np.ndarray) -> faiss.IndexFlatIP:
    """An exact index of faiss of these vectors."""
    index = faiss.IndexFlatIP(vector_ND.shape[1])
    for start in range(0, len(vector_ND), BLOCK_ROWS):
        index.add(vector_ND[start : start + BLOCK_ROWS].astype(np.float32))
    return index


def search_tuned(index: faiss.Index, question_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search with faiss at its best for this number of questions."""
    with blas_threshold(TUNED_THRESHOLD if len(question_BD) >= LEAST_TUNED else None):
        found: tuple[np.ndarray, np.ndarray] = index.search(question_BD, k)
    return found


@contextlib.contextmanager
def blas_threshold(value: int | None) -> Iterator[None]:
    """The threshold of faiss for matrix products inside; None: as it is."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = before if value is None else value
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def exact_recall(vector_ND: np.ndarray, question_BD: np.ndarray, row_BK: np.ndarray) -> float:
    """Share of the found rows whose score in fp64 reaches the true k-th best."""
    question = question_BD.astype(np.float64)
    k = row_BK.shape[1]
    best_BK = np.empty((len(question), 0))
    for start in range(0, len(vector_ND), BLOCK_ROWS):
        score_BN = question @ vector_ND[start : start + BLOCK_ROWS].astype(np.float64).T
        both_BN = np.concatenate([best_BK, np.partition(score_BN, -min(k, score_BN.shape[1]))[:, -k:]], axis=1)
        best_BK = np.partition(both_BN, -min(k, both_BN.shape[1]))[:, -k:]
    found_BK = np.einsum("bd,bkd->bk", question, vector_ND[row_BK].astype(np.float64))
    kth_B1 = best_BK.min(axis=1, keepdims=True)
    is_right_BK = found_BK >= kth_B1 - np.finfo(np.float32).eps * np.abs(kth_B1)
    has_repeats = any(len(set(row)) < k for row in row_BK.tolist())
    return 0.0 if has_repeats else float(is_right_BK.mean())
