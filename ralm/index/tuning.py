"""Probe vectors, and the least effort with which an approximate index reaches its recall target on them.

Shapes: B probes, C candidates of a probe, N passages, D embedding size.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np

from ralm.index import fast_scan_lists
from ralm.index.approximate import ApproximateSearcher, Effort, Layout
from ralm.index.config import USED_BY, IndexSettings
from ralm.index.matrix import rescore, to_float32
from ralm.index.recall import recall_at_k, reference_rows

logger = logging.getLogger(__name__)
TUNED_CUT = 10
PROBE_WEIGHT, MIXED = 0.4, 32
RERANKS = (16, 32, 64, 128, 256, 512, 1024)
REACHES = (2.0, 3.0, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 9.0, 10.0, 0.0)
"""How far below the nearest list others are searched (kind ivf_pq_fast_scan); at last all lists."""


def make_probes(matrix_ND: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Vectors that lie to the passages as questions do: near one of them, but nearer to the open space between them.

    A stored vector as its own question finds itself in any index, and noise in a random direction, where there are no
    passages, changes no order. A probe is a stored vector x and a mixture of other stored vectors y around the mean m:
    `0.4 x / |x| + sqrt(1 - 0.4^2) z / |z|` with `z = sum_j g_j (y_j - m)`, g_j normal: noise spread as the corpus is.
    The weight 0.4 was chosen by real questions (400 of QED, MiniLM, 11,202 Wikipedia passages, ivf_flat with 287
    lists): recall@10 with 8, 16, 32, 64 lists is 0.74, 0.85, 0.92, 0.97 for them and 0.78, 0.87, 0.93, 0.97 for
    probes; with weight 0.7 and a single y it was 0.95, 0.98, 0.99, 1.00, far too easy.

    Args:
        matrix_ND: vectors as `matrix.npy` holds them.
        count: number of probes.
        seed: of the random choices.

    Returns:
        float32 [count, D], of about length 1.
    """
    generator = np.random.default_rng(seed)
    center_D = to_float32(matrix_ND[:: max(1, len(matrix_ND) // 4096)]).mean(0)
    near_BD = to_float32(matrix_ND[generator.integers(len(matrix_ND), size=count)])
    noise_BD = np.empty_like(near_BD)
    for noise_D in noise_BD:
        others = to_float32(matrix_ND[generator.integers(len(matrix_ND), size=MIXED)]) - center_D
        noise_D[:] = generator.normal(size=MIXED).astype(np.float32) @ others
    probe_BD = PROBE_WEIGHT * _unit(near_BD) + (1 - PROBE_WEIGHT**2) ** 0.5 * _unit(noise_BD)
    return probe_BD.astype(np.float32)


def _unit(vector_BD: np.ndarray) -> np.ndarray:
    return vector_BD / np.maximum(np.linalg.norm(vector_BD, axis=1, keepdims=True), 1e-12)


def tune(index: Any, matrix_ND: np.ndarray, layout: Layout, settings: IndexSettings) -> tuple[Effort, float]:
    """The fewest lists, and for them the least re-ranking, with which recall@10 reaches the target.

    Where none does, it is the best that was tried.

    Returns:
        The effort and its recall@10 on the tuning probes.
    """
    probe_BD = make_probes(matrix_ND, settings.num_probes, seed=1)
    cut = min(TUNED_CUT, len(matrix_ND))
    exact_score_BK, _ = reference_rows(probe_BD, matrix_ND, cut)
    best, best_recall = Effort(breadth=1, rerank=0), -1.0
    reranks = _reranks(settings, len(matrix_ND))
    for effort in _efforts(settings, layout):
        widest = ApproximateSearcher(index, matrix_ND, layout, dataclasses.replace(effort, rerank=reranks[-1]))
        score_BC, row_BC = widest.candidates(probe_BD, cut)
        true_score_BC = rescore(probe_BD, row_BC, matrix_ND)
        for rerank in reranks:
            order_score_BC = (true_score_BC if rerank else score_BC)[:, : cut + rerank]
            order = np.argsort(-order_score_BC, axis=1, kind="stable")[:, :cut]
            recall = recall_at_k(np.take_along_axis(true_score_BC, order, 1), exact_score_BK)
            if recall > best_recall:
                best, best_recall = dataclasses.replace(effort, rerank=rerank), recall
            if recall >= settings.recall_target:
                return dataclasses.replace(effort, rerank=rerank), recall
    return best, best_recall


def _efforts(settings: IndexSettings, layout: Layout) -> list[Effort]:
    """What is tried, the least first."""
    if layout.kind == fast_scan_lists.KIND and settings.nprobe == "auto":
        return [Effort(breadth=layout.nlist, rerank=0, reach=reach) for reach in REACHES]
    return [Effort(breadth=breadth, rerank=0) for breadth in _breadths(settings, layout)]


def _breadths(settings: IndexSettings, layout: Layout) -> list[int]:
    if settings.kind not in (*USED_BY["nprobe"], *USED_BY["hnsw_ef"]):
        return [1]
    chosen = settings.nprobe if layout.nlist else settings.hnsw_ef
    if chosen != "auto":
        return [min(chosen, layout.nlist) if layout.nlist else chosen]
    lowest, highest = (1, layout.nlist) if layout.nlist else (16, 1024)
    steps = [lowest]
    while steps[-1] < highest:
        steps.append(min(2 * steps[-1], highest))
    return steps


def _reranks(settings: IndexSettings, num_passages: int) -> list[int]:
    if settings.kind not in USED_BY["rerank"]:
        return [0]
    if settings.rerank != "auto":
        return [settings.rerank]
    return [rerank for rerank in RERANKS if rerank < num_passages] or [num_passages]


def measure_recall(search: Any, probe_BD: np.ndarray, matrix_ND: np.ndarray) -> dict[str, float]:
    """recall@1, 10 and 100 of a search against faiss's brute force over the same stored vectors.

    Args:
        search: from (float32 [B, D], k) to (scores, rows).
        probe_BD: questions.
        matrix_ND: vectors as `matrix.npy` holds them.
    """
    cuts = [cut for cut in (1, 10, 100) if cut <= len(matrix_ND)]
    exact_score_BK, _ = reference_rows(probe_BD, matrix_ND, cuts[-1])
    recall = {}
    for k in cuts:
        found_score_BK = rescore(probe_BD, search(probe_BD, k)[1], matrix_ND)
        recall[f"recall_at_{k}"] = round(recall_at_k(found_score_BK, exact_score_BK[:, :k]), 6)
    return recall
